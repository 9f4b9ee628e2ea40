"""How a contestant talks with the bench that started it: one JSON line when its first step is done, one for each turn it is given.

{"first_step": seconds since the process began, "parameters": n}
<- "4\n": run four steps
{"seconds": of the four steps, "cpu_seconds": of all threads, "loss": the last step's}
<- end of file
{"peak_bytes": greatest resident size}
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


def contend(step: Callable[[], float], parameters: int) -> None:
    """`step()` makes one update and returns its loss, when it is done. Serves turns until the bench closes the pipe."""
    step()
    _say(first_step=since_start(), parameters=parameters)
    for line in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            loss = step()
        _say(seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - used, loss=loss)
    _say(peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def since_start() -> float:
    """Seconds since this process began, its imports included."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - ticks / 100


def _say(**values: float) -> None:
    # The pipe is the bench's: whatever a library prints goes elsewhere (see `main` of each program).
    print(json.dumps(values), flush=True)
