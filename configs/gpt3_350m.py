"""GPT-3 350M (arXiv 2005.14165, table 2.1).

    paxlike train configs/gpt3_350m.py --run-dir runs/gpt3-350m

The recipe is that of `gpt3_125m.py`, with the batch of 256 sequences and the learning rate of the
table. 355,871,744 parameters.
"""

import dataclasses
from pathlib import Path

from paxlike.config import Config, load


def config() -> Config:
    base = load(Path(__file__).with_name("gpt3_125m.py"))
    model = dataclasses.replace(
        base.model, layers=24, d_model=1024, heads=16, kv_heads=16, head_dim=64, d_ff=4096
    )
    optim = dataclasses.replace(base.optim, learning_rate=0.0003, warmup_steps=715)
    train = dataclasses.replace(base.train, steps=572_205, batch_size=256)
    sections = {"model": model, "optim": optim, "train": train}
    return dataclasses.replace(base, name="gpt3-350m", **sections)
