"""Everything around the training step, one component at a time: tables, JSON and a plot.

    python -m tools.bench.components                             all components, into runs/bench
    python -m tools.bench.components input checkpoint --out DIR
    python -m tools.bench.components --size test                 smoke test

Each component runs in its own process: one needs fake devices, another a cold Python start.
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
COMPONENTS = ("startup", "input", "checkpoint", "generation", "scaling")


def run_components(names: Sequence[str], size: str, out: Path) -> dict[str, dict]:
    """The JSON results of each component.

    Raises CalledProcessError if a component fails; its output has been printed by then.
    """
    results = {}
    for name in names:
        path = out.absolute() / f"{name}.json"
        words = [sys.executable, "-m", f"tools.bench.{name}", "--size", size, "--json", str(path)]
        subprocess.run(words, cwd=ROOT, check=True)
        results[name] = json.loads(path.read_text())
    return results


def plot(results: dict[str, dict]) -> str:
    """A group of bars for each measurement that has a baseline."""
    groups = []
    for result in results.values():
        for row in result["rows"]:
            if row["other"]:
                bars = [
                    (f"{row['unit']}, paxlike", row["value"]),
                    (f"{row['unit']}, {row['beside']}", row["other"]),
                ]
                groups.append((f"{result['title']}: {row['what']}", bars))
    return bar_plot("Around the step (each group has its own scale)", groups)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "components", nargs="*", help=f"any of {', '.join(COMPONENTS)} (default: all)"
    )
    parser.add_argument("--size", choices=("full", "test"), default="full")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    flags = parser.parse_args(arguments)
    if unknown := set(flags.components) - set(COMPONENTS):
        parser.error(
            f"unknown component {', '.join(sorted(unknown))}; choose from {', '.join(COMPONENTS)}"
        )
    results = run_components(flags.components or COMPONENTS, flags.size, flags.out)
    write(flags.out / "components.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    write(flags.out / "components.svg", plot(results))


if __name__ == "__main__":
    main()
