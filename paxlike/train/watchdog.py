"""Notices a step that does not end: a collective waits for ever for a process that hangs.

The limit is learned: a multiple of the usual step of this run. What takes its own time (compiling, saving, evaluating) is not watched.
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
from paxlike.parallel.departure import LOST, Departure

LEARN = 5
"""Steps that must have been seen before the limit is taken from them."""
FIRST_SECONDS = 1800.0
"""The limit until then."""


class Limit:
    """How long a step may take, from how long the last ones took."""

    def __init__(self, config: WatchdogConfig):
        self._config, self._seen = config, deque(maxlen=100)

    def saw(self, seconds: float) -> None:
        self._seen.append(seconds)

    @property
    def usual(self) -> float:
        """Median seconds of a step; 0 before LEARN are known."""
        return statistics.median(self._seen) if len(self._seen) >= LEARN else 0.0

    @property
    def seconds(self) -> float:
        return max(self._config.at_least, self._config.factor * self.usual) if self.usual else FIRST_SECONDS

    def __str__(self) -> str:
        usual = f", the usual step takes {self.usual:.2g} s" if self.usual else ""
        return f"the limit is {self.seconds:.0f} s{usual}"


class Watchdog:
    """Watches while it is entered, and between `paused`. A step that takes too long ends the process and, in a job, all of it."""

    def __init__(self, config: WatchdogConfig, folder: Path, clock: Callable[[], float] = time.monotonic):
        """folder: the run's; each process writes its stacks under it, or under its host's temporary folder for a bucket."""
        self.limit = Limit(config)
        # When all hangs a bucket may be what it hangs at: then stacks go to this host's disk.
        root = Path(tempfile.gettempdir()) / f"paxlike-{folder.name}" if in_bucket(folder) else folder
        self._path = root / "stacks" / f"process-{jax.process_index()}.txt"
        self._clock, self._phase, self._step = clock, "start", 0
        self._since: float | None = None
        self._closed = threading.Event()
        self._departure = Departure(self.write_stacks)

    def __enter__(self) -> "Watchdog":
        self._since = self._clock()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        self._closed.set()
        if error is not None and jax.process_count() > 1:
            self._departure.fail(error)
        self._departure.close()

    def finished(self, step: int) -> None:
        """Step `step` has ended on the device."""
        now = self._clock()
        if self._since is not None:
            self.limit.saw(now - self._since)
        self._since, self._step, self._phase = now, step, "step"

    @contextlib.contextmanager
    def paused(self, phase: str) -> Iterator[None]:
        """Does not watch what happens inside, and starts afresh after it."""
        before, self._phase, self._since = self._phase, phase, None
        try:
            yield
        finally:
            self._phase, self._since = before, self._clock()

    @contextlib.contextmanager
    def limited(self, phase: str, seconds: float) -> Iterator[None]:
        """Gives what happens inside a limit of its own."""
        timer = threading.Timer(seconds, self._hang, (f"{phase} has taken more than {seconds:.0f} s.",))
        timer.daemon = True
        with self.paused(phase):
            timer.start()
            try:
                yield
            finally:
                timer.cancel()

    def overdue(self) -> float | None:
        """Seconds since the last step ended, where they are more than the limit."""
        since = self._since
        late = None if since is None else self._clock() - since
        return late if late is not None and late > self.limit.seconds else None

    def write_stacks(self) -> None:
        """Where every thread of this process stands, and its last step, into the run folder."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        title = f"{now} process {jax.process_index()}: last step finished: {self._step}, now in: {self._phase}\n"
        # By a local file: the threads are dumped to a file descriptor, and the run folder may be in a bucket.
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(title + file.read())

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.limit.seconds / 10)):
            late = self.overdue()
            if late is not None:
                self._hang(f"the step after step {self._step} has taken {late:.0f} s; {self.limit}.")

    def _hang(self, what: str) -> None:
        message = f"{what} Stacks of every process that answers are in {self._path.parent}."
        self._departure.leave({"is": "hang", "code": LOST, "message": message})
