"""SIGTERM and SIGINT ask a run to save and stop; a second one stops it at once.

In a job of many processes JAX handles SIGTERM: all stop at the same step, whichever of them got it. SIGINT is left to Python there.
"""

import signal

from paxlike.parallel import runtime


class StopRequest:
    """While it is entered, `name` is the signal that came, or None."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.name: str | None = None
        self._before: dict = {}

    def __enter__(self) -> "StopRequest":
        if runtime.client() is None:
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def asked(self) -> bool:
        """Whether to stop before the next step; `name` is then the signal. Every process asks before each step."""
        if self.name is None and runtime.stop_agreed():
            self.name = "SIGTERM"
        return self.name is not None

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.name is not None:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
