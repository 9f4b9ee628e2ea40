"""Trains `configs/bitnet_tiny.py` and its high-precision equivalent on the default corpus.

    python -m tools.bench.bitnet_learning           does the runs missing in
                                                    docs/bitnet_learning.json, then plots
    python -m tools.bench.bitnet_learning --draw    only plots docs/bitnet_learning.svg

Two comparisons, each with all other settings equal:
- Loss: high precision, BitNet without groups, BitNet with groups; three seeds; each variant at its
  best learning rate in the second comparison.
- Stability (BitNet, arXiv 2310.11453, figure 5a): high precision and BitNet at increasing peak
  learning rates, without gradient clipping.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np

from paxlike.config import Config, QuantConfig, UserError, load
from paxlike.files import write_file
from tools.bench.learning_plot import draw

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "bitnet_learning.json"
VARIANTS = {
    "float": QuantConfig(),
    "bitnet": QuantConfig(weights="bitnet", statistics="token"),
    "bitnet, 4 groups": QuantConfig(weights="bitnet", groups=4),
}
SEARCHED = ("float", "bitnet, 4 groups")
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
HIGH_RATES = (0.32, 1.28)
"""For the stability comparison only."""
SEEDS = (0, 1, 2)
STEPS = 120


def run_config(variant: str, rate: float, seed: int) -> Config:
    """The config of one run; `rate` is the peak learning rate."""
    base = load(ROOT / "configs" / "bitnet_tiny.py")
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, quant=VARIANTS[variant]),
        optim=dataclasses.replace(base.optim, learning_rate=rate, clip=0.0),
        train=dataclasses.replace(base.train, steps=STEPS, seed=seed),
        data=dataclasses.replace(base.data, seed=seed),
        checkpoint=dataclasses.replace(base.checkpoint, every=STEPS),
        eval=dataclasses.replace(base.eval, every=0, batches=32),
        log=dataclasses.replace(base.log, tensorboard=False, every=STEPS),
    )


def run(variant: str, rate: float, seed: int) -> dict:
    """Trains once. `validation` is None if the loss was not finite."""
    from paxlike.training.loop import train

    with tempfile.TemporaryDirectory() as folder:
        try:
            result = train(run_config(variant, rate, seed), Path(folder) / "run")
            validation = result.evaluation["loss"]
        except UserError as error:
            print(f"{variant} at {rate}: {error}")
            validation = None
        lines = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
        losses = [
            round(line["loss"], 4) for line in lines if "loss" in line and "event" not in line
        ]
    return {
        "variant": variant,
        "rate": rate,
        "seed": seed,
        "validation": validation,
        "losses": losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", action="store_true", help="only plot the existing results")
    if not parser.parse_args().draw:
        for rate in RATES:
            for variant in SEARCHED:
                run_if_missing(variant, rate, SEEDS[0])
        for seed in SEEDS:
            for variant in VARIANTS:
                run_if_missing(variant, best_rate(variant), seed)
        for rate in HIGH_RATES:
            for variant in SEARCHED:
                run_if_missing(variant, rate, SEEDS[0])
    summarize()


def summarize() -> None:
    """Prints the table and draws the plot."""
    plotted = []
    for variant in VARIANTS:
        rate = best_rate(variant)
        runs = [r for r in results() if (r["variant"], r["rate"]) == (variant, rate)]
        losses = np.array([r["validation"] for r in runs])
        each = ", ".join(f"{loss:.3f}" for loss in losses)
        print(
            f"{variant:18} peak {rate:g}: {losses.mean():.3f} +- {losses.std(ddof=1):.3f} ({each})"
        )
        plotted += runs
    searched = [r for r in results() if r["variant"] in SEARCHED and r["seed"] == SEEDS[0]]
    for r in sorted(searched, key=lambda r: (r["variant"], r["rate"])):
        print(f"{r['variant']:18} peak {r['rate']:g}: {r['validation']}")
    RESULTS.with_suffix(".svg").write_text(draw(VARIANTS, plotted, searched))


def results() -> list[dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def run_if_missing(variant: str, rate: float, seed: int) -> None:
    known = results()
    if any((r["variant"], r["rate"], r["seed"]) == (variant, rate, seed) for r in known):
        return
    known.append(run(variant, rate, seed))
    print(f"{variant}, {rate}, seed {seed}: {known[-1]['validation']}", flush=True)
    write_file(RESULTS, "[\n" + ",\n".join(json.dumps(r) for r in known) + "\n]\n")


def best_rate(variant: str) -> float:
    """The peak learning rate of the stability runs with the lowest loss.

    BitNet without groups uses the rate found with groups.
    """
    searched = SEARCHED[variant != "float"]
    runs = [
        r
        for r in results()
        if r["variant"] == searched and r["seed"] == SEEDS[0] and r["rate"] in RATES
    ]
    return min((r for r in runs if r["validation"]), key=lambda r: r["validation"])["rate"]


if __name__ == "__main__":
    main()
