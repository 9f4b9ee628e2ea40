"""What the benchmarks share: interleaved timing, result rows with ratios, and JSON output.

Other programs on a machine slow down whatever runs at that moment. Compared workloads are therefore
interleaved (A B A B) and their medians compared. The CPU seconds of the process, which exclude time
taken by other programs, are reported along with the wall seconds.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement, the baseline it is compared with, and whether its goal is reached."""

    name: str
    value: float
    unit: str
    baseline: str = ""
    """What `baseline_value` measures."""
    baseline_value: float | None = None
    """In `unit`."""
    goal: str = ""
    reached: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.value / self.baseline_value if self.baseline_value else None

    def as_dict(self) -> dict:
        """For JSON: NumPy scalars become Python numbers."""
        fields = {
            "what": self.name,
            "value": self.value,
            "unit": self.unit,
            "beside": self.baseline,
            "other": self.baseline_value,
            "goal": self.goal,
            "reached": self.reached,
            "note": self.note,
            "ratio": self.ratio,
        }
        return {
            key: value.item() if hasattr(value, "item") else value for key, value in fields.items()
        }


class Timings:
    """Wall and CPU seconds of one workload, one entry per turn."""

    def __init__(self):
        self.wall_times: list[float] = []
        self.cpu_times: list[float] = []

    @property
    def wall(self) -> float:
        """Median wall seconds."""
        return statistics.median(self.wall_times)

    @property
    def cpu(self) -> float:
        """Median CPU seconds of all threads of this process."""
        return statistics.median(self.cpu_times)

    @property
    def spread(self) -> str:
        times = self.wall_times
        return f"{min(times):.3g} to {max(times):.3g} s over {len(times)}"


def interleave(
    workloads: Mapping[str, Callable[[], object]], turns: int, warmup: int = 1
) -> dict[str, Timings]:
    """Runs each workload `turns` times, alternating between them.

    A workload must wait for its own result. The first `warmup` turns are not recorded.
    """
    timings = {name: Timings() for name in workloads}
    for turn in range(warmup + turns):
        for name, work in workloads.items():
            begin = time.perf_counter(), time.process_time()
            work()
            if turn >= warmup:
                timings[name].wall_times.append(time.perf_counter() - begin[0])
                timings[name].cpu_times.append(time.process_time() - begin[1])
    return timings


def machine() -> dict:
    """The machine, its load and the date; a measurement means nothing without them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = [
        line.partition(":")[2].strip()
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("model name")
    ]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": cores,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def markdown_table(title: str, rows: list[Row]) -> str:
    """Rows as a Markdown table in the format of docs/performance.md."""
    lines = [f"**{title}**", "", "| | paxlike | baseline | ratio | goal |", "|---|---|---|---|---|"]
    for row in rows:
        baseline = row.baseline
        if row.baseline_value is not None:
            baseline += f": {format_number(row.baseline_value)} {row.unit}"
        ratio = f"{row.ratio:.3g} ×" if row.ratio is not None else ""
        verdict = {None: "", True: ": reached", False: ": MISSED"}[row.reached]
        name = f"{row.name} ({row.note})" if row.note else row.name
        value = f"{format_number(row.value)} {row.unit}"
        lines.append(f"| {name} | {value} | {baseline} | {ratio} | {row.goal}{verdict} |")
    return "\n".join(lines) + "\n"


def format_number(value: float) -> str:
    """Three significant digits, thousands grouped."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write(path: Path, text: str) -> None:
    """Writes atomically: to a temporary file first, which is then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.rename(path)


def command_line(title: str, doc: str, measure: Callable[[str], list[Row]]) -> None:
    """The command line of one benchmark: `--size full|test` and `--json FILE`."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", choices=("full", "test"), default="full", help="test: a small smoke test"
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    flags = parser.parse_args()
    rows = measure(flags.size)
    if flags.size == "test":
        rows = [dataclasses.replace(row, reached=None) for row in rows]
    print(markdown_table(title, rows), flush=True)
    if flags.json:
        results = {
            "title": title,
            "size": flags.size,
            "machine": machine(),
            "rows": [row.as_dict() for row in rows],
        }
        write(flags.json, json.dumps(results, indent=2, allow_nan=False) + "\n")
