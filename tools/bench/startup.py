"""Startup time of the command line: wall seconds of whole processes.

    python -m tools.bench.startup [--size test] [--json FILE]

The baseline, `python -c pass`, is the time that Python itself takes to start and exit.
"""

import subprocess
import sys
from pathlib import Path

from tools.bench.measure import Row, command_line, interleave

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "paxlike --help": ["-m", "paxlike", "--help"],
    "paxlike info configs/palm_540b.py": ["-m", "paxlike", "info", "configs/palm_540b.py"],
}
GOALS = {"paxlike --help": 0.4, "paxlike info configs/palm_540b.py": 1.0}


def rows(size: str) -> list[Row]:
    def run(arguments: list[str]) -> None:
        subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )

    workloads = {
        name: lambda arguments=arguments: run(arguments) for name, arguments in COMMANDS.items()
    }
    timings = interleave(workloads, turns=9 if size == "full" else 1)
    python = timings["python -c pass"].wall
    return [
        Row(
            name,
            timings[name].wall,
            "s",
            "python -c pass",
            python,
            f"under {goal:g} s",
            timings[name].wall < goal,
            timings[name].spread,
        )
        for name, goal in GOALS.items()
    ]


if __name__ == "__main__":
    command_line("Startup", __doc__, rows)
