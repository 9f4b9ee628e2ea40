"""GPT-3 175B (arXiv 2005.14165, table 2.1).

    paxlike train configs/gpt3_175b.py --run-dir runs/gpt3-175b

The recipe is that of `gpt3_125m.py`, with the batch of 1536 sequences and the learning rate of the
table. 174,604,259,328 parameters.
"""

import dataclasses
from pathlib import Path

from paxlike.config import Config, load


def config() -> Config:
    base = load(Path(__file__).with_name("gpt3_125m.py"))
    model = dataclasses.replace(
        base.model, layers=96, d_model=12288, heads=96, kv_heads=96, head_dim=128, d_ff=49152
    )
    optim = dataclasses.replace(base.optim, learning_rate=6e-05, warmup_steps=119)
    train = dataclasses.replace(base.train, steps=95_367, batch_size=1536)
    mesh = dataclasses.replace(base.mesh, model=8)
    sections = {"model": model, "optim": optim, "train": train, "mesh": mesh}
    return dataclasses.replace(base, name="gpt3-175b", **sections)
