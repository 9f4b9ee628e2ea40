"""Records when each step's metrics were ready on the device, without making the loop wait.

The loop reads metrics late. If it took the time when it reads them, two steps read right after each
other would look as if the second had taken no time. A separate thread waits for each step instead
and records the time.
"""

import queue
import threading
import time

import jax


class ReadyClock:
    def __init__(self) -> None:
        self._watched: queue.SimpleQueue = queue.SimpleQueue()
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, name="ready-clock", daemon=True).start()

    def watch(self, arrays: object) -> None:
        """Adds a dispatched step's outputs to the queue."""
        self._watched.put(arrays)

    def ready(self) -> float:
        """Waits for the oldest step in the queue, removes it, and returns when it was ready.

        The time is of `time.monotonic()`.
        """
        return self._ready.get()

    def close(self) -> None:
        self._watched.put(None)

    def _run(self) -> None:
        while (arrays := self._watched.get()) is not None:
            try:
                jax.block_until_ready(arrays)
            except Exception:  # noqa: S110 - the loop gets the same error when it reads the metrics
                pass
            self._ready.put(time.monotonic())
