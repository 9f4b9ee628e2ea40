"""GPT-3 1.3B (arXiv 2005.14165, table 2.1).

    paxlike train configs/gpt3_1_3b.py --run-dir runs/gpt3-1.3b

The recipe is that of `gpt3_125m.py`, with the batch of 512 sequences and the learning rate of the
table. The table has 24 heads of 128, which are not the width; here 16. 1,315,723,264 parameters.
"""

import dataclasses
from pathlib import Path

from paxlike.config import Config, load


def config() -> Config:
    base = load(Path(__file__).with_name("gpt3_125m.py"))
    model = dataclasses.replace(
        base.model, layers=24, d_model=2048, heads=16, kv_heads=16, head_dim=128, d_ff=8192
    )
    optim = dataclasses.replace(base.optim, learning_rate=0.0002, warmup_steps=358)
    train = dataclasses.replace(base.train, steps=286_102, batch_size=512)
    sections = {"model": model, "optim": optim, "train": train}
    return dataclasses.replace(base, name="gpt3-1.3b", **sections)
