"""BitNet 350M (arXiv 2310.11453, tables 5 and 6), with quantization groups.

    paxlike train configs/bitnet_350m.py --run-dir runs/bitnet-350m

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
        d_model=1024,
        heads=16,
        kv_heads=16,
        head_dim=64,
        d_ff=4096,
        quant=QuantConfig(weights="bitnet", groups=8),
    )
    optim = dataclasses.replace(base.optim, learning_rate=1.2e-3)
    return dataclasses.replace(base, name="bitnet-350m", model=model, optim=optim)
