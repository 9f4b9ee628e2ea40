"""LoRA on a trained run: a rank-8 update of all matrices, 5% of the parameters. 1 minute on two CPU
cores.

    paxlike train configs/tiny.py --run-dir runs/base
    paxlike train configs/adapt_lora.py --init.from runs/base --data.store data/chat

The base stays as it is. A checkpoint has the adapter only, and the run remembers its base by a
fingerprint. The loss on the new text falls from that of the base; docs/adapting.md has figures.
"""

import dataclasses

from paxlike.config import AdaptConfig, CheckpointConfig, Config, OptimConfig, load


def config() -> Config:
    base = load("tiny")
    return dataclasses.replace(
        base,
        name="adapt-lora",
        adapt=AdaptConfig("lora", rank=8, alpha=16.0, targets=("all",)),
        optim=OptimConfig(
            name="adamw", learning_rate=3e-3, schedule="cosine", warmup_steps=10, beta2=0.95
        ),
        checkpoint=CheckpointConfig(every=100),
    )
