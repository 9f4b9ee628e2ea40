"""What the benches share: works that take turns, rows of a table with ratios, JSON.

Other programs on a machine slow down whatever runs at that moment. So works that are compared take turns, A B A B, and medians are
compared; the CPU seconds of the process, which do not count what others take, are told beside the wall seconds.
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
    """One figure, what it stands beside, and whether its goal is reached."""

    what: str
    value: float
    unit: str
    beside: str = ""
    """What `other` is."""
    other: float | None = None
    """In the same unit."""
    goal: str = ""
    reached: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.value / self.other if self.other else None

    def as_dict(self) -> dict:
        """For JSON, which does not know NumPy's numbers."""
        plain = {
            key: value.item() if hasattr(value, "item") else value for key, value in dataclasses.asdict(self).items()
        }
        return plain | {"ratio": None if self.ratio is None else float(self.ratio)}


class Taken:
    """Seconds of one work, turn by turn."""

    def __init__(self):
        self.walls: list[float] = []
        self.cpus: list[float] = []

    @property
    def wall(self) -> float:
        return statistics.median(self.walls)

    @property
    def cpu(self) -> float:
        """Of all threads of this process."""
        return statistics.median(self.cpus)

    @property
    def spread(self) -> str:
        return f"{min(self.walls):.3g} to {max(self.walls):.3g} s over {len(self.walls)}"


def take_turns(works: Mapping[str, Callable[[], object]], turns: int, warm: int = 1) -> dict[str, Taken]:
    """Runs each work `turns` times, in turns. A work waits for its own result. The first `warm` turns are not counted."""
    taken = {name: Taken() for name in works}
    for turn in range(warm + turns):
        for name, work in works.items():
            begin = time.perf_counter(), time.process_time()
            work()
            if turn >= warm:
                taken[name].walls.append(time.perf_counter() - begin[0])
                taken[name].cpus.append(time.process_time() - begin[1])
    return taken


def machine() -> dict:
    """Where and when: no figure means anything without."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = [line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": cores,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def table(title: str, rows: list[Row]) -> str:
    """Rows as a Markdown table, which is also what docs/performance.md holds."""
    lines = [f"**{title}**", "", "| | here | beside | ratio | goal |", "|---|---|---|---|---|"]
    for row in rows:
        other = f"{row.beside}: {number(row.other)} {row.unit}" if row.other is not None else row.beside
        ratio = f"{row.ratio:.3g} ×" if row.ratio is not None else ""
        verdict = {None: "", True: ": reached", False: ": MISSED"}[row.reached]
        what = f"{row.what} ({row.note})" if row.note else row.what
        lines.append(f"| {what} | {number(row.value)} {row.unit} | {other} | {ratio} | {row.goal}{verdict} |")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Three digits that mean something, thousands grouped."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write(path: Path, text: str) -> None:
    """To a temporary name first, so that a file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_text(text)
    beside.rename(path)


def command(title: str, doc: str, measure: Callable[[str], list[Row]]) -> None:
    """The command line of a part: `--size` full or test, `--json FILE`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "test"), default="full", help="test: small, to see that it runs")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    flags = parser.parse_args()
    rows = measure(flags.size)
    if flags.size == "test":
        rows = [dataclasses.replace(row, reached=None) for row in rows]
    print(table(title, rows), flush=True)
    if flags.json:
        told = {"title": title, "size": flags.size, "machine": machine(), "rows": [row.as_dict() for row in rows]}
        write(flags.json, json.dumps(told, indent=2, allow_nan=False) + "\n")
