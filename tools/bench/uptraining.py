"""Converts multi-head models to fewer key/value heads and trains them on (arXiv 2305.13245).

    python -m tools.bench.uptraining                does the runs missing in docs/uptraining.json,
                                                    then prints the table
    python -m tools.bench.uptraining --table        only prints the table

A small multi-head model is trained on the default corpus, with three seeds. Each is converted to
grouped queries (2 heads) and to multi-query (1 head) by `init.kv_heads` mean, first and random, and
trained for 5 % of the steps with a new optimizer, on other batches. Compared are the validation
losses when converted and after the 5 %. The row of 8 heads is the same training without conversion.
"""

import argparse
import dataclasses
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np

from paxlike.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    InitConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from paxlike.files import write_file

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "uptraining.json"
STEPS, PART = 1000, 0.05
HEADS = 8
SEEDS = (0, 1, 2)
VARIANTS = [(HEADS, "mean"), *itertools.product((2, 1), ("mean", "first", "random"))]
"""(key/value heads, how they are made)."""


def base_config(seed: int) -> Config:
    """The config of a multi-head model."""
    return Config(
        name="uptraining",
        model=ModelConfig(
            layers=3, d_model=128, heads=HEADS, kv_heads=HEADS, head_dim=16, d_ff=384,
            vocab_size=320, block="serial", norm="rms",
        ),
        data=DataConfig(sequence_length=128, tokenizer="bytes", seed=seed),
        optim=OptimConfig(
            name="adamw", learning_rate=4e-3, schedule="cosine", warmup_steps=50, beta2=0.95
        ),
        train=TrainConfig(steps=STEPS, batch_size=16, seed=seed),
        checkpoint=CheckpointConfig(every=STEPS, keep=1),
        eval=EvalConfig(batches=64),
        log=LogConfig(every=STEPS, tensorboard=False),
    )  # fmt: skip


def converted_config(base: Path, seed: int, kv_heads: int, how: str, updates: bool) -> Config:
    """The config that trains a converted model on. updates: False changes no parameter, so that the
    evaluation is that of the conversion.
    """
    config = base_config(seed)
    rate, steps = (1e-3, round(PART * STEPS)) if updates else (1e-30, 1)
    return dataclasses.replace(
        config,
        init=InitConfig(str(base), kv_heads=how),
        model=dataclasses.replace(config.model, kv_heads=kv_heads),
        data=dataclasses.replace(config.data, seed=seed + 100),
        optim=dataclasses.replace(
            config.optim, learning_rate=rate, schedule="constant", warmup_steps=0
        ),
        train=dataclasses.replace(config.train, steps=steps, seed=seed + 100),
    )


def loss_of(config: Config, folder: Path) -> float:
    """The validation loss after training."""
    from paxlike.api.training import train_here

    _, result = train_here(config, folder)
    return result.evaluation["loss"]


def run_seed(seed: int) -> None:
    """Does the missing runs of one seed."""
    known = [(r["kv_heads"], r["how"]) for r in results() if r["seed"] == seed]
    missing = [variant for variant in VARIANTS if variant not in known]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = loss_of(base_config(seed), folder / "base")
        for number, (kv_heads, how) in enumerate(missing):
            losses = [
                loss_of(
                    converted_config(folder / "base", seed, kv_heads, how, updates),
                    folder / f"{number}-{updates}",
                )
                for updates in (False, True)
            ]
            row = {"seed": seed, "kv_heads": kv_heads, "how": how, "base": base, "losses": losses}
            write_file(RESULTS, json.dumps([*results(), row], indent=1) + "\n")


def results() -> list[dict]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


def table(rows: list[dict]) -> str:
    """Means over the seeds and every seed's loss, as Markdown."""
    lines = [
        "| heads | made by | converted | after 5 % | each seed after 5 % |",
        "|---|---|---|---|---|",
    ]
    for kv_heads, how in VARIANTS:
        found = [r for r in rows if (r["kv_heads"], r["how"]) == (kv_heads, how)]
        before, after = np.array([r["losses"] for r in found]).T
        each = ", ".join(f"{loss:.4f}" for loss in after)
        made = "unchanged" if kv_heads == HEADS else how
        lines.append(f"| {kv_heads} | {made} | {before.mean():.4f} | {after.mean():.4f} | {each} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="only print the existing results")
    if not parser.parse_args().table:
        from paxlike.parallel import runtime

        runtime.start(fake_devices=1)
        for seed in SEEDS:
            run_seed(seed)
    print(table(results()))


if __name__ == "__main__":
    main()
