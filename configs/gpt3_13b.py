"""GPT-3 13B (arXiv 2005.14165, table 2.1).

    paxlike train configs/gpt3_13b.py --run-dir runs/gpt3-13b

The recipe is that of `gpt3_125m.py`, with the batch of 1024 sequences and the learning rate of the
table. The table has width 5,140, which 40 heads of 128 are not; here 5,120. 12,853,386,240
parameters.
"""

import dataclasses
from pathlib import Path

from paxlike.config import Config, load


def config() -> Config:
    base = load(Path(__file__).with_name("gpt3_125m.py"))
    model = dataclasses.replace(
        base.model, layers=40, d_model=5120, heads=40, kv_heads=40, head_dim=128, d_ff=20480
    )
    optim = dataclasses.replace(base.optim, learning_rate=0.0001, warmup_steps=179)
    train = dataclasses.replace(base.train, steps=143_051, batch_size=1024)
    mesh = dataclasses.replace(base.mesh, model=4)
    sections = {"model": model, "optim": optim, "train": train, "mesh": mesh}
    return dataclasses.replace(base, name="gpt3-13b", **sections)
