"""The reference work on this CPU, beside what a user would pick instead: one program each, in turns.

    python -m tools.bench.cpu [--turns 5] [--steps 2] [--only NAME …] [--torch-python PATH] [--maxtext-python PATH] [--out DIR]

Programs: paxlike; PyTorch (eager, torch.compile) and Hugging Face's Cohere where `--torch-python` (default: this one) has torch 2.13 and
transformers (extra `bench`); MaxText where `--maxtext-python` (3.12) has it. A large product alone, by XLA and by PyTorch, tells what the
machine gives at that moment. Each program lives through all turns; a turn is some steps of one of them while the others wait.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.bench import measure
from tools.bench.plot import bar_plot

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 4 * 512
MATMUL_PARAMETERS = 46.7e6
PRODUCT = 2 * 4096**3
"""FLOPs of the large product."""
OURS = ["-m", "tools.bench.twins.ours"]
TWINS = "tools/bench/twins/"
PROGRAMS = {
    "paxlike": ("", OURS),
    "paxlike, bfloat16": ("", [*OURS, "--compute", "bfloat16"]),
    "torch.compile": ("torch", [TWINS + "torch_palm.py", "compile"]),
    "PyTorch": ("torch", [TWINS + "torch_palm.py"]),
    "torch.compile, bfloat16": ("torch", [TWINS + "torch_palm.py", "compile", "bfloat16"]),
    "Hugging Face Cohere": ("torch", [TWINS + "hf_cohere.py"]),
    "MaxText": ("maxtext", [TWINS + "maxtext.py"]),
    "paxlike, 2 x 2 fake mesh": ("", [*OURS, "--mesh", "2", "2"]),
    "MaxText, 2 x 2, 2 key/value heads": ("maxtext", [TWINS + "maxtext.py", "--mesh", "2", "2", "--kv-heads", "2"]),
    "a 4096³ product, XLA": ("", [TWINS + "product.py", "xla"]),
    "a 4096³ product, PyTorch": ("torch", [TWINS + "product.py", "torch"]),
}


@dataclasses.dataclass
class Contestant:
    name: str
    process: subprocess.Popen
    first_step: float = 0.0
    parameters: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)
    """Of a step, turn by turn."""
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    loss: float = 0.0
    peak_bytes: int = 0

    @property
    def rate(self) -> float:
        """Tokens per second, or FLOP/s of a product: the median."""
        return (PRODUCT if "product" in self.name else TOKENS) / statistics.median(self.seconds)

    def read(self) -> dict:
        """Raises EOFError where the program has ended."""
        if not (line := self.process.stdout.readline()):
            raise EOFError(f"{self.name} ended with code {self.process.wait()}; what it wrote is above")
        return json.loads(line)

    def turn(self, steps: int) -> None:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        told = self.read()
        self.seconds.append(told["seconds"] / steps)
        self.cpu_seconds.append(told["cpu_seconds"] / steps)
        self.loss = told["loss"]

    def end(self) -> None:
        self.process.stdin.close()
        self.peak_bytes = self.read()["peak_bytes"]
        self.process.wait()


def start(name: str, pythons: dict[str, str]) -> Contestant | None:
    """Starts a program and waits for its first step, nothing of which has been compiled before; None, with a line that says so, where it
    cannot run."""
    python, words = PROGRAMS[name]
    with tempfile.TemporaryDirectory() as caches:
        empty = {"JAX_COMPILATION_CACHE_DIR": caches, "TORCHINDUCTOR_CACHE_DIR": caches}
        process = subprocess.Popen(
            [pythons[python], *words],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | empty,
        )
        return _begun(Contestant(name, process))


def _begun(contestant: Contestant) -> Contestant | None:
    try:
        told = contestant.read()
    except (EOFError, json.JSONDecodeError) as error:
        contestant.process.kill()
        print(f"left out: {error}", flush=True)
        return None
    contestant.first_step, contestant.parameters = told["first_step"], told["parameters"]
    return contestant


def contest(names: list[str], pythons: dict[str, str], turns: int, steps: int) -> list[Contestant]:
    """All programs, `turns` times in turns after one turn that does not count."""
    running = []
    with contextlib.ExitStack() as stack:
        for name in names:
            if contestant := start(name, pythons):
                stack.callback(contestant.process.kill)
                running.append(contestant)
                print(f"{name}: first step after {contestant.first_step:.1f} s", flush=True)
        for turn in range(turns + 1):
            for contestant in running:
                contestant.turn(steps)
            if turn == 0:
                for contestant in running:
                    contestant.seconds.clear()
                    contestant.cpu_seconds.clear()
            print(f"turn {turn} of {turns}", flush=True)
        for contestant in running:
            contestant.end()
    return running


def first_steps() -> dict[str, float]:
    """Seconds from the command `paxlike train` to the end of its first step, with an empty and with a filled compilation cache."""
    from paxlike.config import DataConfig
    from paxlike.data.source import open_data

    store = open_data(DataConfig(tokenizer_vocab=4096)).folder
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "reference.py").write_text(
            "from tools.bench import reference\n\n\ndef config():\n"
            '    return reference.config("full", remat="attention")\n'
        )
        for name in ("cold", "warm"):
            run = Path(folder) / name
            words = [
                "train",
                f"{folder}/reference.py",
                "--train.steps",
                "1",
                "--data.store",
                str(store),
                "--run-dir",
                str(run),
            ]
            began = time.time()
            subprocess.run(
                [sys.executable, "-m", "paxlike", *words],
                cwd=ROOT,
                check=True,
                stdout=subprocess.DEVNULL,
                env=_environment(folder),
            )
            lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
            found[name] = next(line["time"] for line in lines if "event" not in line) - began
    return found


def _environment(folder: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PAXLIKE_CACHE": f"{folder}/cache"}


def table(running: list[Contestant], first: dict[str, float]) -> str:
    rates = {contestant.name: contestant.rate for contestant in running}
    product = rates.get("a 4096³ product, PyTorch") or rates.get("a 4096³ product, XLA")
    lines = [
        "| | tokens/s | a step: median (least – most) s | CPU s | ours / theirs | share of the product | first step s | peak GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in running:
        wall = f"{statistics.median(one.seconds):.2f} ({min(one.seconds):.2f} – {max(one.seconds):.2f})"
        cpu, peak = f"{statistics.median(one.cpu_seconds):.2f}", f"{one.peak_bytes / 1e9:.2f}"
        if "product" in one.name:
            lines.append(f"| {one.name} | {one.rate / 1e9:.0f} GFLOP/s | {wall} | {cpu} | | | | |")
            continue
        mine = rates.get("paxlike, 2 x 2 fake mesh" if "2 x 2" in one.name else "paxlike")
        ratio = f"{mine / one.rate:.2f}" if mine else ""
        share = f"{6 * MATMUL_PARAMETERS * one.rate / product:.0%}" if product else ""
        lines.append(
            f"| {one.name} | {one.rate:.0f} | {wall} | {cpu} | {ratio} | {share} | {one.first_step:.1f} | {peak} |"
        )
    lines += [
        "",
        *(f"`paxlike train`, {name} cache: first step after {seconds:.1f} s" for name, seconds in first.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument(
        "--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), metavar="NAME", help=", ".join(PROGRAMS)
    )
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--maxtext-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    flags = parser.parse_args()
    pythons = {"": sys.executable, "torch": flags.torch_python, "maxtext": flags.maxtext_python}
    running = contest(flags.only, pythons, flags.turns, flags.steps)
    first = first_steps()
    print(table(running, first))
    told = {
        "machine": measure.machine(), "tokens_per_step": TOKENS, "matmul_parameters": MATMUL_PARAMETERS, "first_step_seconds": first,
        "programs": {
            one.name: {field.name: getattr(one, field.name) for field in dataclasses.fields(one) if field.name != "process"}
            for one in running
        },
    }  # fmt: skip
    measure.write(flags.out / "cpu.json", json.dumps(told, indent=2, allow_nan=False) + "\n")
    bars = [(f"tokens/s, {one.name}", one.rate) for one in running if "product" not in one.name]
    measure.write(flags.out / "cpu.svg", bar_plot("The reference work on this CPU", [("tokens per second", bars)]))


if __name__ == "__main__":
    main()
