"""BitNet 1.3B (arXiv 2310.11453, tables 5 and 6), with quantization groups.

    paxlike train configs/bitnet_1_3b.py --run-dir runs/bitnet-1.3b

The recipe is that of `bitnet_125m.py`.
"""

import dataclasses
from pathlib import Path

from paxlike.config import Config, QuantConfig, load


def config() -> Config:
    base = load(Path(__file__).with_name("bitnet_125m.py"))
    model = dataclasses.replace(
        base.model,
        layers=24,
        d_model=2048,
        heads=32,
        kv_heads=32,
        head_dim=64,
        d_ff=8192,
        quant=QuantConfig(weights="bitnet", groups=8),
    )
    optim = dataclasses.replace(base.optim, learning_rate=8e-4)
    return dataclasses.replace(base, name="bitnet-1.3b", model=model, optim=optim)
