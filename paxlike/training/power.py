"""Energy use as reported by the hardware, read periodically by a separate thread.

| hardware | reading | covers |
|---|---|---|
| NVIDIA GPUs | `nvidia-smi --query-gpu=power.draw`, watts | this process's GPUs and their memory |
| CPUs on Linux | `/sys/class/powercap/intel-rapl:*/energy_uj` | CPU packages, all their processes |

Linux often restricts the CPU counters to root. TPUs report no power. Without a source, no energy is
reported.
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
"""Seconds between readings."""
RAPL = Path("/sys/class/powercap")


class Source(NamedTuple):
    name: str
    joules: Callable[[float], float]
    """joules(seconds): the joules used since the previous call, `seconds` ago.

    Raises OSError, ValueError or SubprocessError if the source cannot be read.
    """


class EnergyMeter:
    """Adds up joules until `close`. Stops for good after the first failed reading."""

    def __init__(
        self, source: Source, period: float = PERIOD, clock: Callable[[], float] = time.monotonic
    ):
        self.source = source
        self.joules = 0.0
        self.failed = False
        self._period, self._clock, self._last = period, clock, clock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy-meter", daemon=True)
        self._thread.start()

    def sample(self) -> None:
        """Adds the energy used since the previous sample."""
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


def energy_source(platform: str) -> Source | None:
    """Returns the energy source of a platform (`gpu`, `cpu`, `tpu`), or None if it has none."""
    try:
        if platform == "gpu" and (tool := shutil.which("nvidia-smi")):
            return watts_source(lambda: nvidia_watts(tool))
        if platform == "cpu":
            return rapl_source(RAPL)
    except (OSError, ValueError, subprocess.SubprocessError):
        pass
    return None


def watts_source(read: Callable[[], list[float]]) -> Source:
    """Computes joules from each GPU's power: the mean of two successive readings times the time."""
    before = read()

    def joules(seconds: float) -> float:
        nonlocal before
        now = read()
        mean, before = (sum(before) + sum(now)) / 2, now
        return mean * seconds

    return Source(f"power.draw of {len(before)} GPUs by nvidia-smi", joules)


def nvidia_watts(tool: str) -> list[float]:
    """Returns the watts of each GPU of this process (CUDA_VISIBLE_DEVICES).

    Raises ValueError if a GPU reports no power, and SubprocessError if nvidia-smi fails.
    """
    command = [tool, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    if chosen := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command += ["-i", chosen]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    watts = [float(line) for line in done.stdout.split("\n") if line.strip()]
    if not watts:
        raise ValueError("nvidia-smi lists no GPU")
    return watts


def rapl_source(root: Path) -> Source | None:
    """Computes joules from the CPU packages' energy counters, or returns None if there are none.

    The counters wrap around at `max_energy_range_uj`.
    """
    packages = sorted(path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1)
    if not packages:
        return None
    ranges = [int((path / "max_energy_range_uj").read_text()) for path in packages]
    read = lambda: [int((path / "energy_uj").read_text()) for path in packages]  # noqa: E731
    before = read()

    def joules(seconds: float) -> float:
        nonlocal before
        now = read()
        used = sum(
            (n - b) if n >= b else (n + limit - b)
            for n, b, limit in zip(now, before, ranges, strict=True)
        )
        before = now
        return used / 1e6

    name = f"RAPL counters of {len(packages)} CPU packages, for all processes on this machine"
    return Source(name, joules)
