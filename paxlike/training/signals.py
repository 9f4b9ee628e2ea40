"""SIGTERM and SIGINT make a run save and stop; a second signal stops it immediately.

In a multi-process job JAX handles SIGTERM: all processes stop at the same step, whichever of them
received it. SIGINT keeps Python's default handler there.
"""

import signal

from paxlike.parallel import runtime


class StopRequest:
    """Handles signals inside a `with` block. `name` is the signal received, or None."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous_handlers: dict = {}

    def __enter__(self) -> "StopRequest":
        if runtime.client() is None:
            self._previous_handlers = {
                number: signal.signal(number, self._handle) for number in self.SIGNALS
            }
        return self

    def requested(self) -> bool:
        """Returns whether to stop before the next step. All processes must call it at each step."""
        if self.name is None and runtime.stop_agreed():
            self.name = "SIGTERM"
        return self.name is not None

    def __exit__(self, *_) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.name is not None:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
