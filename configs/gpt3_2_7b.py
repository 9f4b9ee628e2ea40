"""GPT-3 2.7B (arXiv 2005.14165, table 2.1).

    paxlike train configs/gpt3_2_7b.py --run-dir runs/gpt3-2.7b

The recipe is that of `gpt3_125m.py`, with the batch of 512 sequences and the learning rate of the
table. 2,651,553,280 parameters.
"""

import dataclasses
from pathlib import Path

from paxlike.config import Config, load


def config() -> Config:
    base = load(Path(__file__).with_name("gpt3_125m.py"))
    model = dataclasses.replace(
        base.model, layers=32, d_model=2560, heads=32, kv_heads=32, head_dim=80, d_ff=10240
    )
    optim = dataclasses.replace(base.optim, learning_rate=0.00016, warmup_steps=358)
    train = dataclasses.replace(base.train, steps=286_102, batch_size=512)
    sections = {"model": model, "optim": optim, "train": train}
    return dataclasses.replace(base, name="gpt3-2.7b", **sections)
