"""Everything around the step, part by part: tables, JSON and a plot.

    python -m tools.bench.around                                      all parts, into runs/bench
    python -m tools.bench.around input checkpoint --out DIR
    python -m tools.bench.around --size test                          that they run

Each part is a process of its own: one needs fake devices, another a program that is not in memory yet.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.bench.measure import write
from tools.bench.plot import bar_plot

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("startup", "input", "checkpoint", "generation", "growth")


def run_parts(parts: Sequence[str], size: str, out: Path) -> dict[str, dict]:
    """Part -> what it wrote. Raises CalledProcessError where one fails; what it printed has been seen by then."""
    found = {}
    for part in parts:
        path = out.absolute() / f"{part}.json"
        words = [sys.executable, "-m", f"tools.bench.{part}", "--size", size, "--json", str(path)]
        subprocess.run(words, cwd=ROOT, check=True)
        found[part] = json.loads(path.read_text())
    return found


def plot(found: dict[str, dict]) -> str:
    """A group of bars for each figure that stands beside another."""
    groups = []
    for told in found.values():
        for row in told["rows"]:
            if row["other"]:
                bars = [(f"{row['unit']}, here", row["value"]), (f"{row['unit']}, {row['beside']}", row["other"])]
                groups.append((f"{told['title']}: {row['what']}", bars))
    return bar_plot("Around the step (each group to its own scale)", groups)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--size", choices=("full", "test"), default="full")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    flags = parser.parse_args(arguments)
    if unknown := set(flags.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    found = run_parts(flags.parts or PARTS, flags.size, flags.out)
    write(flags.out / "around.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    write(flags.out / "around.svg", plot(found))


if __name__ == "__main__":
    main()
