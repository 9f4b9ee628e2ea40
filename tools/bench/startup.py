"""How long a user waits for the command line: wall seconds of whole processes.

    python -m tools.bench.startup [--size test] [--json FILE]

`python -c pass` is what Python itself takes to start and end.
"""

import subprocess
import sys
from pathlib import Path

from tools.bench.measure import Row, command, take_turns

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "paxlike --help": ["-m", "paxlike", "--help"],
    "paxlike info configs/palm_540b.py": ["-m", "paxlike", "info", "configs/palm_540b.py"],
}
GOALS = {"paxlike --help": 0.4, "paxlike info configs/palm_540b.py": 1.0}


def rows(size: str) -> list[Row]:
    def run(arguments: list[str]) -> None:
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    works = {name: lambda arguments=arguments: run(arguments) for name, arguments in COMMANDS.items()}
    taken = take_turns(works, turns=9 if size == "full" else 1)
    bare = taken["python -c pass"].wall
    return [
        Row(
            name,
            taken[name].wall,
            "s",
            "python -c pass",
            bare,
            f"under {goal:g} s",
            taken[name].wall < goal,
            taken[name].spread,
        )  # fmt: skip
        for name, goal in GOALS.items()
    ]


if __name__ == "__main__":
    command("Start-up", __doc__, rows)
