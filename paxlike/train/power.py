"""Energy that the machine says it used, read now and then by a thread of its own: the loop never waits for it.

| where | what is read | what it covers |
|---|---|---|
| NVIDIA GPUs | `nvidia-smi --query-gpu=power.draw`, watts | this process's GPUs with their memory, no host |
| CPUs on Linux | `/sys/class/powercap/intel-rapl:*/energy_uj` | the packages and all that runs on them; often for root only |

TPUs report no power. Where nothing can be read there is no figure.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PERIOD = 10.0
"""Seconds between two readings."""
RAPL = Path("/sys/class/powercap")


class Source(NamedTuple):
    name: str
    joules: Callable[[float], float]
    """Joules used in the time since the last call, which is as many seconds ago. Raises OSError or ValueError where it cannot be read."""


class EnergyMeter:
    """Adds up joules until `close`. A source that fails once is not asked again, and the sum ends there."""

    def __init__(self, source: Source, period: float = PERIOD, clock: Callable[[], float] = time.monotonic):
        self.source = source
        self.joules = 0.0
        self.failed = False
        self._period, self._clock, self._last = period, clock, clock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy-meter", daemon=True)
        self._thread.start()

    def sample(self) -> None:
        """Adds what was used since the last sample."""
        now = self._clock()
        try:
            self.joules += max(0.0, self.source.joules(now - self._last))
        except (OSError, ValueError, subprocess.SubprocessError):
            self.failed = True
        self._last = now

    def close(self) -> None:
        self._closed.set()

    def _run(self) -> None:
        while not self.failed and not self._closed.wait(self._period):
            self.sample()


def source_here(platform: str) -> Source | None:
    """What can be read for the devices of a platform (`gpu`, `cpu`, `tpu`); None where nothing can."""
    try:
        if platform == "gpu" and (tool := shutil.which("nvidia-smi")):
            return watts_source(lambda: nvidia_watts(tool))
        if platform == "cpu":
            return rapl_source(RAPL)
    except (OSError, ValueError, subprocess.SubprocessError):
        pass
    return None


def watts_source(read: Callable[[], list[float]]) -> Source:
    """Joules from the power of each GPU: the mean of the readings at both ends, times the time between."""
    before = read()

    def joules(seconds: float) -> float:
        nonlocal before
        now = read()
        mean, before = (sum(before) + sum(now)) / 2, now
        return mean * seconds

    return Source(f"power.draw of {len(before)} GPUs by nvidia-smi", joules)


def nvidia_watts(tool: str) -> list[float]:
    """Watts of each GPU of this process (CUDA_VISIBLE_DEVICES). Raises ValueError where one reports none."""
    command = [tool, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    if chosen := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command += ["-i", chosen]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    watts = [float(line) for line in done.stdout.split("\n") if line.strip()]
    if not watts:
        raise ValueError("nvidia-smi lists no GPU")
    return watts


def rapl_source(root: Path) -> Source | None:
    """Joules of the CPU packages from their energy counters, which start again at zero at `max_energy_range_uj`."""
    packages = sorted(path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1)
    if not packages:
        return None
    ranges = [int((path / "max_energy_range_uj").read_text()) for path in packages]
    read = lambda: [int((path / "energy_uj").read_text()) for path in packages]  # noqa: E731
    before = read()

    def joules(seconds: float) -> float:
        nonlocal before
        now = read()
        used = sum((n - b) if n >= b else (n + limit - b) for n, b, limit in zip(now, before, ranges, strict=True))
        before = now
        return used / 1e6

    return Source(f"RAPL counters of {len(packages)} CPU packages, all that runs on this machine", joules)
