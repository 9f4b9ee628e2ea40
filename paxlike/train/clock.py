"""When a step's numbers were ready on the device: the ends of its time. Nobody is made to wait for them.

Reading a number late, as the loop does, gives the time of the reading: two steps read one right after the other would look as if the
second had taken no time. A thread of its own waits for each step instead and looks at the clock.
"""

import queue
import threading
import time

import jax


class ReadyClock:
    def __init__(self):
        self._watched: queue.SimpleQueue = queue.SimpleQueue()
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, name="ready-clock", daemon=True).start()

    def watch(self, arrays: object) -> None:
        """The next step's outputs, as they were dispatched."""
        self._watched.put(arrays)

    def ready(self) -> float:
        """`time.monotonic()` when the oldest step watched and not asked for yet was ready; waits for it."""
        return self._ready.get()

    def close(self) -> None:
        self._watched.put(None)

    def _run(self) -> None:
        while (arrays := self._watched.get()) is not None:
            try:
                jax.block_until_ready(arrays)
            except Exception:  # noqa: S110 - the loop meets the same error when it reads the numbers
                pass
            self._ready.put(time.monotonic())
