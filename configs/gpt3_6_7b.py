"""GPT-3 6.7B (arXiv 2005.14165, table 2.1).

    paxlike train configs/gpt3_6_7b.py --run-dir runs/gpt3-6.7b

The recipe is that of `gpt3_125m.py`, with the batch of 1024 sequences and the learning rate of the
table. 6,658,404,352 parameters.
"""

import dataclasses
from pathlib import Path

from paxlike.config import Config, load


def config() -> Config:
    base = load(Path(__file__).with_name("gpt3_125m.py"))
    model = dataclasses.replace(
        base.model, layers=32, d_model=4096, heads=32, kv_heads=32, head_dim=128, d_ff=16384
    )
    optim = dataclasses.replace(base.optim, learning_rate=0.00012, warmup_steps=179)
    train = dataclasses.replace(base.train, steps=143_051, batch_size=1024)
    mesh = dataclasses.replace(base.mesh, model=4)
    sections = {"model": model, "optim": optim, "train": train, "mesh": mesh}
    return dataclasses.replace(base, name="gpt3-6.7b", **sections)
