"""Detects a step that never ends: a collective waits forever for a process that hangs.

The timeout is a multiple of the run's median step time. Compilation, checkpoints and evaluation
are not watched, because their duration has nothing to do with a step's.
"""

import contextlib
import datetime
import faulthandler
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from paxlike.config import WatchdogConfig
from paxlike.data.location import in_bucket
from paxlike.parallel.failure import LOST, FailurePropagation

MIN_STEPS = 5
"""Number of steps after which the timeout is derived from their median."""
FIRST_SECONDS = 1800.0
"""The timeout until then."""


class StepTimeout:
    """The timeout of a step, derived from the times of the last steps."""

    def __init__(self, config: WatchdogConfig):
        self._config = config
        self._step_seconds: deque[float] = deque(maxlen=100)

    def add(self, seconds: float) -> None:
        self._step_seconds.append(seconds)

    @property
    def median(self) -> float:
        """Median seconds of a step; 0 before MIN_STEPS steps."""
        enough = len(self._step_seconds) >= MIN_STEPS
        return statistics.median(self._step_seconds) if enough else 0.0

    @property
    def seconds(self) -> float:
        if not self.median:
            return FIRST_SECONDS
        return max(self._config.at_least, self._config.factor * self.median)

    def __str__(self) -> str:
        median = f", the median step takes {self.median:.2g} s" if self.median else ""
        return f"the timeout is {self.seconds:.0f} s{median}"


class Watchdog:
    """Watches steps inside its `with` block, except inside `paused`.

    A step that exceeds the timeout ends this process and all other processes of its job.
    """

    def __init__(
        self, config: WatchdogConfig, folder: Path, clock: Callable[[], float] = time.monotonic
    ):
        """folder: the run directory, under which each process writes its stack traces.

        If it is in a bucket, they go to the host's temporary directory: access to the bucket may be
        what hangs.
        """
        self.timeout = StepTimeout(config)
        root = (
            Path(tempfile.gettempdir()) / f"paxlike-{folder.name}" if in_bucket(folder) else folder
        )
        self._path = root / "stacks" / f"process-{jax.process_index()}.txt"
        self._clock, self._phase, self._step = clock, "start", 0
        self._since: float | None = None
        self._closed = threading.Event()
        self._failure = FailurePropagation(self.write_stacks)

    def __enter__(self) -> "Watchdog":
        self._since = self._clock()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        self._closed.set()
        if error is not None and jax.process_count() > 1:
            self._failure.fail(error)
        self._failure.close()

    def finished(self, step: int) -> None:
        """Records that step `step` has ended on the device."""
        now = self._clock()
        if self._since is not None:
            self.timeout.add(now - self._since)
        self._since, self._step, self._phase = now, step, "step"

    @contextlib.contextmanager
    def paused(self, phase: str) -> Iterator[None]:
        """Stops watching inside the block, and restarts the step's time after it."""
        outer_phase, self._phase, self._since = self._phase, phase, None
        try:
            yield
        finally:
            self._phase, self._since = outer_phase, self._clock()

    @contextlib.contextmanager
    def limited(self, phase: str, seconds: float) -> Iterator[None]:
        """Applies a separate timeout to the block."""
        timer = threading.Timer(
            seconds, self._hang, (f"{phase} has taken more than {seconds:.0f} s.",)
        )
        timer.daemon = True
        with self.paused(phase):
            timer.start()
            try:
                yield
            finally:
                timer.cancel()

    def overdue(self) -> float | None:
        """Returns the seconds since the last step ended if they exceed the timeout, else None."""
        since = self._since
        elapsed = None if since is None else self._clock() - since
        return elapsed if elapsed is not None and elapsed > self.timeout.seconds else None

    def write_stacks(self) -> None:
        """Writes the stack traces of all threads of this process, and its last step."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        title = (
            f"{now} process {jax.process_index()}: last step finished: {self._step}, "
            f"now in: {self._phase}\n"
        )
        # Through a temporary file: faulthandler needs a file descriptor.
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(title + file.read())

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.timeout.seconds / 10)):
            elapsed = self.overdue()
            if elapsed is not None:
                self._hang(
                    f"the step after step {self._step} has taken {elapsed:.0f} s; {self.timeout}."
                )

    def _hang(self, reason: str) -> None:
        message = (
            f"{reason} The stack traces of every process that responds are in {self._path.parent}."
        )
        self._failure.exit({"is": "hang", "code": LOST, "message": message})
