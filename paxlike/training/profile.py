"""The profiler window: traces a few steps for TensorBoard or xprof."""

from collections.abc import Callable
from pathlib import Path

import jax

from paxlike.config import ProfileConfig, UserError
from paxlike.data.location import in_bucket


class ProfileWindow:
    def __init__(self, config: ProfileConfig, folder: Path, say: Callable[[str], None]):
        if config.start >= 0 and in_bucket(folder):
            raise UserError(
                f"profile.start is {config.start}, but JAX cannot write traces to {folder}; give a "
                "local --run-dir."
            )
        self._first, self._end = config.start, config.start + config.steps
        self._folder, self._say, self._open = folder, say, False

    def before_step(self, step: int, wait: Callable[[], None]) -> None:
        """Starts or stops the trace if step `step` (from 0) is the first in or after the window.

        wait(): waits until the device is idle.
        """
        if self._first < 0 or step not in (self._first, self._end):
            return
        wait()
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._open = True
        else:
            self.close()

    def close(self) -> None:
        """Stops the trace if it is running, and writes it."""
        if self._open:
            jax.profiler.stop_trace()
            self._open = False
            self._say(f"profile starting at step {self._first + 1}: {self._folder}")
