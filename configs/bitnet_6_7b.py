"""BitNet 6.7B (arXiv 2310.11453, tables 5 and 6), with quantization groups and tiles.

    paxlike train configs/bitnet_6_7b.py --run-dir runs/bitnet-6.7b

The recipe is that of `bitnet_125m.py`. With 8 tiles along `d_model`, a mesh with 2-, 4- or 8-way
`data` gathers the weights as one bit each.
"""

import dataclasses
from pathlib import Path

from paxlike.config import Config, QuantConfig, load


def config() -> Config:
    base = load(Path(__file__).with_name("bitnet_125m.py"))
    model = dataclasses.replace(
        base.model,
        layers=32,
        d_model=4096,
        heads=32,
        kv_heads=32,
        head_dim=128,
        d_ff=16384,
        quant=QuantConfig(weights="bitnet", groups=8, data_tiles=8),
    )
    optim = dataclasses.replace(base.optim, learning_rate=4.8e-4)
    return dataclasses.replace(base, name="bitnet-6.7b", model=model, optim=optim)
