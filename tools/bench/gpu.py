"""The training step on one GPU, size by size, beside a PyTorch twin in the same call.

    python -m tools.bench.gpu                       125M, 1B (2048 and 8192 tokens), 3B and PaLM 8B; int8; XLA options; table, JSON, plot
    python -m tools.bench.gpu --size 1b 3b --out DIR
    python -m tools.bench.gpu --compile-only        FLOPs, bytes and memory of the programs, without a GPU
    python -m tools.bench.gpu --size test           that it runs, on any machine

Needs jax, flax, optax and this package, so that it runs in a vendor's image; PyTorch where it is installed. Each measurement is a
process of its own, which begins with all memory free. Where a batch does not fit, the size's next smaller one is tried.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.bench.gpu_sizes import OPTIONS, REAL, SIZES
from tools.bench.measure import machine, number, write
from tools.bench.plot import bar_plot

ROOT = Path(__file__).resolve().parents[2]
OUT_OF_MEMORY = 3
GiB = 2**30
TRIED_AT = "1b"
"""The size at which XLA options and keeping everything are tried, and int8 is measured."""


def run(module: str, *arguments: object, batches: Sequence[int] = ()) -> dict:
    """What a measurement prints, at the first of `batches` that fits; {"failed": why} where none does, or it fails otherwise."""
    why = ""
    for batch in batches or [None]:
        words = [str(word) for word in arguments]
        words[1:1] = [] if batch is None else [str(batch)]
        done = subprocess.run(
            [sys.executable, "-m", f"tools.bench.{module}", *words], cwd=ROOT, env=_environment(), capture_output=True, text=True
        )  # fmt: skip
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        why = "\n".join(done.stderr.strip().splitlines()[-3:])
        if done.returncode != OUT_OF_MEMORY:
            break
    return {"failed": why}


def _environment() -> dict[str, str]:
    """JAX takes 75 % of the memory unless it is told otherwise; the planner counts on 92 %."""
    given = {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys()
    return dict(os.environ) | ({} if given else {"XLA_CLIENT_MEM_FRACTION": ".92"})


def measure(names: Sequence[str]) -> dict:
    has_torch = importlib.util.find_spec("torch") is not None
    found: dict = {
        "machine": machine(),
        "sizes": {},
        "matmul": run("gpu_step", "--matmul", 8192 if "test" not in names else 128),
    }
    for name in names:
        batches = SIZES[name].batches
        ours = run("gpu_step", name, batches=batches)
        theirs = run("gpu_torch", name, batches=batches) if has_torch else {"failed": "PyTorch is not installed"}
        found["sizes"][name] = {"paxlike": ours, "torch": theirs, "goal": SIZES[name].goal, "why": SIZES[name].why}
        print(f"{name}: {_short(ours)}; PyTorch: {_short(theirs)}", file=sys.stderr, flush=True)
    at = TRIED_AT if TRIED_AT in names else names[0]
    found["int8"] = {"size": at} | run("gpu_step", at, "--int8", batches=SIZES[at].batches[1:] or SIZES[at].batches)
    if TRIED_AT in names and "failed" not in (base := found["sizes"][at]["paxlike"]):
        tried = {"remat none": ("--remat", "none")} | {name: ("--option", name) for name in OPTIONS}
        found["tried"] = {name: run("gpu_step", at, *words, batches=[base["batch"]]) for name, words in tried.items()}
    return found


def _short(told: dict) -> str:
    return told["failed"].splitlines()[-1] if told.get("failed") else f"{number(told['tokens_per_second'])} tokens/s"


COLUMNS = (
    "size", "T", "batch", "tokens/s", "MFU palm", "causal", "HFU", "peak GiB", "first step s", "PyTorch tokens/s", "ratio", "goal",
)  # fmt: skip


def describe(found: dict) -> str:
    """Markdown tables of what `measure` found."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(_cells(name, row))} |" for name, row in found["sizes"].items()]
    lines += [""]
    bare = found["matmul"]
    if not bare.get("failed"):
        lines.append(f"A bare {bare['size']}³ bfloat16 matmul: {number(bare['flops_per_second'] / 1e12)} TFLOP/s.")
    int8 = found["int8"]
    lines.append(
        f"int8 forward ({int8['size']}): not measured, {int8['failed']}" if int8.get("failed")
        else f"Ternary weights, forward pass ({int8['size']}, batch {int8['batch']}): {int8['speedup']:.2f} × bfloat16's speed."
    )  # fmt: skip
    for name, told in found.get("tried", {}).items():
        base = found["sizes"][TRIED_AT]["paxlike"]["tokens_per_second"]
        what = f"{name}={OPTIONS[name][0]!r} ({OPTIONS[name][1]})" if name in OPTIONS else name
        worth = told["failed"] if told.get("failed") else f"{told['tokens_per_second'] / base:.3f} × the speed without"
        lines.append(f"{TRIED_AT}, {what}: {worth}.")
    lines += [f"{name}: {row['why']}." for name, row in found["sizes"].items() if row["why"]]
    return "\n".join(lines) + "\n"


def _cells(name: str, row: dict) -> list[str]:
    ours, theirs, size = row["paxlike"], row["torch"], SIZES[name]
    other = (
        "not measured: " + theirs["failed"].splitlines()[-1]
        if theirs.get("failed")
        else f"{number(theirs['tokens_per_second'])} (batch {theirs['batch']})"
    )
    if ours.get("failed"):
        return [name, str(size.length), "", "failed: " + ours["failed"].splitlines()[-1], *[""] * 5, other, "", ""]
    shares = ours["utilization"] or {}
    percent = [f"{shares[key]:.1%}" if key in shares else "no peak" for key in ("mfu palm", "mfu causal", "hfu")]
    peak = f"{ours['peak_bytes'] / GiB:.1f}" if ours["peak_bytes"] else "not told"
    ratio = "" if theirs.get("failed") else f"{ours['tokens_per_second'] / theirs['tokens_per_second']:.2f} ×"
    goal = ""
    if size.goal and shares:
        goal = f"{size.goal:.0%}: {'reached' if shares['mfu palm'] >= size.goal else 'MISSED'}"
    speed = number(ours["tokens_per_second"])
    return [
        name,
        str(size.length),
        str(ours["batch"]),
        speed,
        *percent,
        peak,
        f"{ours['first_step']:.1f}",
        other,
        ratio,
        goal,
    ]


def compiled(names: Sequence[str]) -> dict:
    """Name -> what `gpu_compile` finds of the largest batch that fits, or of the smallest one tried."""
    from tools.bench.gpu_compile import facts

    found = {}
    for name in names:
        for batch in SIZES[name].batches:
            found[name] = facts(SIZES[name].config(batch))
            if found[name]["fits"] is not False:
                break
        print(f"{name}: {found[name]['how']}", file=sys.stderr, flush=True)
    return found


def describe_compiled(found: dict) -> str:
    lines = [
        "| size | T | batch | remat | parameters | TFLOP a step | by formula | GiB moved | memory, GiB | predicted MFU |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, told in found.items():
        moved, mfu = (told[key] for key in ("bytes", "predicted_mfu"))
        cells = [
            name, told["length"], told["batch"], told["remat"], told["params"], f"{told['flops'] / 1e12:.4g}",
            f"{told['executed_flops'] / 1e12:.4g}", f"{moved / GiB:.4g}" if moved else "not compiled",
            f"{told['memory'] / GiB:.4g}" + ("" if told["fits"] is not False else ", does not fit"), f"{mfu:.1%}" if mfu else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _plot(found: dict) -> str:
    groups = []
    for name, row in found["sizes"].items():
        rates = {who: row[who].get("tokens_per_second") for who in ("paxlike", "torch")}
        groups.append((name, [(who, rate) for who, rate in rates.items() if rate]))
    return bar_plot("tokens/s of one GPU, by size (each group to its own scale)", groups)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(REAL))
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for gpu.json and gpu.svg")
    flags = parser.parse_args(arguments)
    if flags.compile_only:
        found = compiled(flags.size)
        print(describe_compiled(found), flush=True)
        write(flags.out / "gpu_compiled.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
        return
    found = measure(flags.size)
    print(describe(found), flush=True)
    write(flags.out / "gpu.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    write(flags.out / "gpu.svg", _plot(found))


if __name__ == "__main__":
    main()
