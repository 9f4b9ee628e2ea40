"""The reference workload on this CPU, compared with alternatives: one process each, interleaved.

    python -m tools.bench.cpu [--turns 5] [--steps 2] [--only NAME …] [--out DIR]
                              [--torch-python PATH] [--maxtext-python PATH]

Programs: paxlike; PyTorch (eager and torch.compile) and Hugging Face's Cohere, if `--torch-python`
(default: this Python) has torch 2.13 and transformers (extra `bench`); MaxText, if
`--maxtext-python` (3.12) has it. A large matmul alone, by XLA and by PyTorch, shows what the
machine can do at that moment. Each program stays alive for all turns; a turn is a few steps of one
program while the others wait.
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
MATMUL_FLOPS = 2 * 4096**3
"""Of the large matmul."""
PAXLIKE = ["-m", "tools.bench.baselines.paxlike_step"]
BASELINES = "tools/bench/baselines/"
FAKE_MESH = "paxlike, 2 x 2 fake mesh"
XLA_MATMUL, TORCH_MATMUL = "4096³ matmul, XLA", "4096³ matmul, PyTorch"
PROGRAMS = {
    "paxlike": ("", PAXLIKE),
    "paxlike, bfloat16": ("", [*PAXLIKE, "--compute", "bfloat16"]),
    "torch.compile": ("torch", [BASELINES + "torch_palm.py", "compile"]),
    "PyTorch": ("torch", [BASELINES + "torch_palm.py"]),
    "torch.compile, bfloat16": ("torch", [BASELINES + "torch_palm.py", "compile", "bfloat16"]),
    "Hugging Face Cohere": ("torch", [BASELINES + "hf_cohere.py"]),
    "MaxText": ("maxtext", [BASELINES + "maxtext.py"]),
    FAKE_MESH: ("", [*PAXLIKE, "--mesh", "2", "2"]),
    "MaxText, 2 x 2, 2 key/value heads": (
        "maxtext",
        [BASELINES + "maxtext.py", "--mesh", "2", "2", "--kv-heads", "2"],
    ),
    XLA_MATMUL: ("", [BASELINES + "matmul.py", "xla"]),
    TORCH_MATMUL: ("torch", [BASELINES + "matmul.py", "torch"]),
}
"""Name -> (which Python runs it, arguments)."""


@dataclasses.dataclass
class Program:
    """A running program; see `baselines/protocol.py`."""

    name: str
    process: subprocess.Popen
    first_step: float = 0.0
    parameters: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)
    """Per step, one entry per turn."""
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    loss: float = 0.0
    peak_bytes: int = 0

    @property
    def is_matmul(self) -> bool:
        return "matmul" in self.name

    @property
    def rate(self) -> float:
        """Tokens per second, or FLOP/s of a matmul: the median."""
        return (MATMUL_FLOPS if self.is_matmul else TOKENS) / statistics.median(self.seconds)

    def read(self) -> dict:
        """The next message. Raises EOFError if the program has exited."""
        if not (line := self.process.stdout.readline()):
            code = self.process.wait()
            raise EOFError(f"{self.name} exited with code {code}; its error output is above")
        return json.loads(line)

    def turn(self, steps: int) -> None:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        message = self.read()
        self.seconds.append(message["seconds"] / steps)
        self.cpu_seconds.append(message["cpu_seconds"] / steps)
        self.loss = message["loss"]

    def end(self) -> None:
        self.process.stdin.close()
        self.peak_bytes = self.read()["peak_bytes"]
        self.process.wait()


def start(name: str, pythons: dict[str, str]) -> Program | None:
    """Starts a program with empty compilation caches and waits for its first step.

    Prints why and returns None if the program cannot run.
    """
    python, arguments = PROGRAMS[name]
    with tempfile.TemporaryDirectory() as caches:
        empty = {"JAX_COMPILATION_CACHE_DIR": caches, "TORCHINDUCTOR_CACHE_DIR": caches}
        process = subprocess.Popen(
            [pythons[python], *arguments],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | empty,
        )
        return _wait_for_first_step(Program(name, process))


def _wait_for_first_step(program: Program) -> Program | None:
    try:
        message = program.read()
    except (EOFError, json.JSONDecodeError) as error:
        program.process.kill()
        print(f"skipped: {error}", flush=True)
        return None
    program.first_step, program.parameters = message["first_step"], message["parameters"]
    return program


def run_interleaved(
    names: list[str], pythons: dict[str, str], turns: int, steps: int
) -> list[Program]:
    """Runs all programs for `turns` turns each, after one warmup turn that is not recorded."""
    running = []
    with contextlib.ExitStack() as stack:
        for name in names:
            if program := start(name, pythons):
                stack.callback(program.process.kill)
                running.append(program)
                print(f"{name}: first step after {program.first_step:.1f} s", flush=True)
        for turn in range(turns + 1):
            for program in running:
                program.turn(steps)
            if turn == 0:
                for program in running:
                    program.seconds.clear()
                    program.cpu_seconds.clear()
            print(f"turn {turn} of {turns}", flush=True)
        for program in running:
            program.end()
    return running


CONFIG_FILE = """from tools.bench import reference


def config():
    return reference.config("full", remat="attention")
"""


def first_steps() -> dict[str, float]:
    """Seconds from starting `paxlike train` to the end of its first step.

    "cold": with an empty compilation cache. "warm": with a filled one.
    """
    from paxlike.config import DataConfig
    from paxlike.data.source import open_data

    store = open_data(DataConfig(tokenizer_vocab=4096)).folder
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "reference.py"
        config.write_text(CONFIG_FILE)
        environment = {"PYTHONPATH": str(ROOT), "PAXLIKE_CACHE": f"{folder}/cache"}
        for name in ("cold", "warm"):
            run = Path(folder) / name
            options = {"--train.steps": "1", "--data.store": str(store), "--run-dir": str(run)}
            begin = time.time()
            subprocess.run(
                [sys.executable, "-m", "paxlike", "train", str(config), *sum(options.items(), ())],
                cwd=ROOT,
                check=True,
                stdout=subprocess.DEVNULL,
                env=os.environ | environment,
            )
            lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
            seconds[name] = next(line["time"] for line in lines if "event" not in line) - begin
    return seconds


COLUMNS = (
    "",
    "tokens/s",
    "step, s (min – max)",
    "CPU s",
    "speedup",
    "of matmul peak",
    "first step, s",
    "peak GB",
)


def markdown_table(programs: list[Program], first: dict[str, float]) -> str:
    """The table of docs/performance.md.

    Speedup is paxlike's tokens/s over the program's; "of matmul peak" is its model FLOP/s over
    those of the large matmul.
    """
    rates = {program.name: program.rate for program in programs}
    peak = rates.get(TORCH_MATMUL) or rates.get(XLA_MATMUL)
    lines = [f"|{' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(_cells(program, rates, peak))} |" for program in programs]
    first_lines = (
        f"`paxlike train`, {name} cache: first step after {seconds:.1f} s"
        for name, seconds in first.items()
    )
    return "\n".join([*lines, "", *first_lines]) + "\n"


def _cells(program: Program, rates: dict[str, float], peak: float | None) -> list[str]:
    times = program.seconds
    wall = f"{statistics.median(times):.2f} ({min(times):.2f} – {max(times):.2f})"
    cpu = f"{statistics.median(program.cpu_seconds):.2f}"
    if program.is_matmul:
        return [program.name, f"{program.rate / 1e9:.0f} GFLOP/s", wall, cpu, "", "", "", ""]
    ours = rates.get(FAKE_MESH if "2 x 2" in program.name else "paxlike")
    return [
        program.name,
        f"{program.rate:.0f}",
        wall,
        cpu,
        f"{ours / program.rate:.2f}" if ours else "",
        f"{6 * MATMUL_PARAMETERS * program.rate / peak:.0%}" if peak else "",
        f"{program.first_step:.1f}",
        f"{program.peak_bytes / 1e9:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps per turn")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PROGRAMS,
        default=list(PROGRAMS),
        metavar="NAME",
        help=", ".join(PROGRAMS),
    )
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--maxtext-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    flags = parser.parse_args()
    pythons = {"": sys.executable, "torch": flags.torch_python, "maxtext": flags.maxtext_python}
    programs = run_interleaved(flags.only, pythons, flags.turns, flags.steps)
    first = first_steps()
    print(markdown_table(programs, first))
    results = {
        "machine": measure.machine(),
        "tokens_per_step": TOKENS,
        "matmul_parameters": MATMUL_PARAMETERS,
        "first_step_seconds": first,
        "programs": {program.name: _as_dict(program) for program in programs},
    }
    measure.write(flags.out / "cpu.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    bars = [(f"tokens/s, {one.name}", one.rate) for one in programs if not one.is_matmul]
    measure.write(
        flags.out / "cpu.svg",
        bar_plot("The reference workload on this CPU", [("tokens per second", bars)]),
    )


def _as_dict(program: Program) -> dict:
    names = [field.name for field in dataclasses.fields(program) if field.name != "process"]
    return {name: getattr(program, name) for name in names}


if __name__ == "__main__":
    main()
