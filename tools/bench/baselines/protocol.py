"""The protocol between a benchmark program and `tools/bench/cpu.py`, over stdin and stdout.

The program prints one JSON line after its first step and one per requested turn:

{"first_step": seconds since the process started, "parameters": n}
<- "4\n": run four steps
{"seconds": of the four steps, "cpu_seconds": of all threads, "loss": of the last step}
<- end of file
{"peak_bytes": peak resident size}
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


def serve_turns(step: Callable[[], float], parameters: int) -> None:
    """Runs turns of `step` until the benchmark closes the pipe.

    step: makes one update, waits for it, and returns its loss.
    """
    step()
    _send(first_step=seconds_since_start(), parameters=parameters)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            loss = step()
        _send(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu, loss=loss)
    _send(peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def seconds_since_start() -> float:
    """Seconds since this process started, its imports included."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - ticks / 100


def _send(**values: float) -> None:
    # Standard output carries this protocol alone; each program's `main` redirects other output.
    print(json.dumps(values), flush=True)
