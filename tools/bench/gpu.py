"""The training step on one GPU, by model size, compared with a PyTorch baseline in the same call.

    python -m tools.bench.gpu                  all sizes, int8, XLA options; writes JSON and plot
    python -m tools.bench.gpu --size 1b 3b --out DIR
    python -m tools.bench.gpu --compile-only   FLOPs, bytes and memory of the programs; without GPU
    python -m tools.bench.gpu --size test      a smoke test for any machine

Sizes: 125M, 1B (2048 and 8192 tokens), 3B and PaLM 8B.

Needs only jax, flax, optax and this package, so it runs in a vendor's image; uses PyTorch if it is
installed. Each measurement runs in its own process, which starts with all memory free. If a batch
does not fit, the size's next smaller one is tried.
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
from tools.bench.measure import format_number, machine, write
from tools.bench.plot import bar_plot

ROOT = Path(__file__).resolve().parents[2]
OUT_OF_MEMORY = 3
GiB = 2**30
OPTIONS_SIZE = "1b"
"""The size with which XLA options, remat "none" and int8 are measured."""


def run(module: str, *arguments: object, batches: Sequence[int] = ()) -> dict:
    """The result of a measurement with the first of `batches` that fits.

    {"failed": why} if none fits or the measurement fails otherwise.
    """
    why = ""
    for batch in batches or [None]:
        words = [str(word) for word in arguments]
        words[1:1] = [] if batch is None else [str(batch)]
        done = subprocess.run(
            [sys.executable, "-m", f"tools.bench.{module}", *words],
            cwd=ROOT,
            env=_environment(),
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        why = "\n".join(done.stderr.strip().splitlines()[-3:])
        if done.returncode != OUT_OF_MEMORY:
            break
    return {"failed": why}


def _environment() -> dict[str, str]:
    """Lets JAX allocate 92 % of the memory, as the planner assumes; its default is 75 %."""
    given = {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys()
    return dict(os.environ) | ({} if given else {"XLA_CLIENT_MEM_FRACTION": ".92"})


def measure(names: Sequence[str]) -> dict:
    results: dict = {
        "machine": machine(),
        "sizes": {},
        "matmul": run("gpu_step", "--matmul", 8192 if "test" not in names else 128),
    }
    for name in names:
        row = results["sizes"][name] = _measure_size(name)
        print(
            f"{name}: {_short(row['paxlike'])}; PyTorch: {_short(row['torch'])}",
            file=sys.stderr,
            flush=True,
        )
    at = OPTIONS_SIZE if OPTIONS_SIZE in names else names[0]
    batches = SIZES[at].batches
    results["int8"] = {"size": at} | run("gpu_step", at, "--int8", batches=batches[1:] or batches)
    base = results["sizes"][at]["paxlike"]
    if OPTIONS_SIZE in names and "failed" not in base:
        tried = {"remat none": ("--remat", "none")} | {name: ("--option", name) for name in OPTIONS}
        results["tried"] = {
            name: run("gpu_step", at, *words, batches=[base["batch"]])
            for name, words in tried.items()
        }
    return results


def _measure_size(name: str) -> dict:
    size = SIZES[name]
    ours = run("gpu_step", name, batches=size.batches)
    torch = {"failed": "PyTorch is not installed"}
    if importlib.util.find_spec("torch") is not None:
        torch = run("gpu_torch", name, batches=size.batches)
    return {
        "paxlike": ours,
        "torch": torch,
        "goal": size.goal,
        "why": size.why,
    }


def _short(result: dict) -> str:
    if result.get("failed"):
        return result["failed"].splitlines()[-1]
    return f"{format_number(result['tokens_per_second'])} tokens/s"


COLUMNS = (
    "size",
    "T",
    "batch",
    "tokens/s",
    "MFU palm",
    "causal",
    "HFU",
    "peak GiB",
    "first step s",
    "PyTorch tokens/s",
    "ratio",
    "goal",
)


def describe(results: dict) -> str:
    """Markdown tables of the results of `measure`."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(_cells(name, row))} |" for name, row in results["sizes"].items()]
    lines += ["", *_matmul_line(results["matmul"]), _int8_line(results["int8"])]
    for name, result in results.get("tried", {}).items():
        base = results["sizes"][OPTIONS_SIZE]["paxlike"]["tokens_per_second"]
        what = f"{name}={OPTIONS[name][0]!r} ({OPTIONS[name][1]})" if name in OPTIONS else name
        effect = result.get("failed")
        if not effect:
            effect = f"{result['tokens_per_second'] / base:.3f} × the speed without"
        lines.append(f"{OPTIONS_SIZE}, {what}: {effect}.")
    lines += [f"{name}: {row['why']}." for name, row in results["sizes"].items() if row["why"]]
    return "\n".join(lines) + "\n"


def _matmul_line(matmul: dict) -> list[str]:
    if matmul.get("failed"):
        return []
    rate = format_number(matmul["flops_per_second"] / 1e12)
    return [f"A bare {matmul['size']}³ bfloat16 matmul: {rate} TFLOP/s."]


def _int8_line(int8: dict) -> str:
    if int8.get("failed"):
        return f"int8 forward ({int8['size']}): not measured, {int8['failed']}"
    what = f"Ternary weights, forward pass ({int8['size']}, batch {int8['batch']})"
    return f"{what}: {int8['speedup']:.2f} × bfloat16's speed."


def _cells(name: str, row: dict) -> list[str]:
    """Cells of COLUMNS for one size."""
    ours, torch, size = row["paxlike"], row["torch"], SIZES[name]
    baseline, ratio, goal = "", "", ""
    if torch.get("failed"):
        baseline = "not measured: " + torch["failed"].splitlines()[-1]
    else:
        baseline = f"{format_number(torch['tokens_per_second'])} (batch {torch['batch']})"
    if ours.get("failed"):
        why = "failed: " + ours["failed"].splitlines()[-1]
        return [name, str(size.length), "", why, *[""] * 5, baseline, "", ""]
    shares = ours["utilization"] or {}
    percent = [
        f"{shares[key]:.1%}" if key in shares else "no peak"
        for key in ("mfu palm", "mfu causal", "hfu")
    ]
    if not torch.get("failed"):
        ratio = f"{ours['tokens_per_second'] / torch['tokens_per_second']:.2f} ×"
    if size.goal and shares:
        goal = f"{size.goal:.0%}: {'reached' if shares['mfu palm'] >= size.goal else 'MISSED'}"
    return [
        name,
        str(size.length),
        str(ours["batch"]),
        format_number(ours["tokens_per_second"]),
        *percent,
        f"{ours['peak_bytes'] / GiB:.1f}" if ours["peak_bytes"] else "unknown",
        f"{ours['first_step']:.1f}",
        baseline,
        ratio,
        goal,
    ]


def compiled(names: Sequence[str]) -> dict:
    """Name -> `gpu_compile.facts` of the largest batch that fits, or of the smallest one tried."""
    from tools.bench.gpu_compile import facts

    results = {}
    for name in names:
        for batch in SIZES[name].batches:
            results[name] = facts(SIZES[name].config(batch))
            if results[name]["fits"] is not False:
                break
        print(f"{name}: {results[name]['how']}", file=sys.stderr, flush=True)
    return results


COMPILED_COLUMNS = (
    "size",
    "T",
    "batch",
    "remat",
    "parameters",
    "TFLOP per step",
    "by formula",
    "GiB moved",
    "memory, GiB",
    "predicted MFU",
)


def describe_compiled(results: dict) -> str:
    """A Markdown table of the results of `compiled`."""
    lines = [f"| {' | '.join(COMPILED_COLUMNS)} |", "|" + "---|" * len(COMPILED_COLUMNS)]
    for name, result in results.items():
        moved, mfu = (result[key] for key in ("bytes", "predicted_mfu"))
        cells = [
            name,
            result["length"],
            result["batch"],
            result["remat"],
            result["params"],
            f"{result['flops'] / 1e12:.4g}",
            f"{result['executed_flops'] / 1e12:.4g}",
            f"{moved / GiB:.4g}" if moved else "not compiled",
            f"{result['memory'] / GiB:.4g}" + (", does not fit" if result["fits"] is False else ""),
            f"{mfu:.1%}" if mfu else "",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _plot(results: dict) -> str:
    groups = []
    for name, row in results["sizes"].items():
        rates = {who: row[who].get("tokens_per_second") for who in ("paxlike", "torch")}
        groups.append((name, [(who, rate) for who, rate in rates.items() if rate]))
    return bar_plot("tokens/s of one GPU, by size (each group has its own scale)", groups)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(REAL))
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="folder for gpu.json and gpu.svg"
    )
    flags = parser.parse_args(arguments)
    if flags.compile_only:
        results = compiled(flags.size)
        print(describe_compiled(results), flush=True)
        write(
            flags.out / "gpu_compiled.json", json.dumps(results, indent=2, allow_nan=False) + "\n"
        )
        return
    results = measure(flags.size)
    print(describe(results), flush=True)
    write(flags.out / "gpu.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    write(flags.out / "gpu.svg", _plot(results))


if __name__ == "__main__":
    main()
