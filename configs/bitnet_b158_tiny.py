"""Ternary weights (arXiv 2402.17764, variant of the published code), trained in two stages.

    paxlike train configs/bitnet_b158_tiny.py

The two stages follow the authors' "Training Tips, Code and FAQ": half-way, the peak learning rate
drops and weight decay ends. The loss falls to 5.04 on the validation split.
"""

import dataclasses
from pathlib import Path

from paxlike.config import Config, QuantConfig, load


def config() -> Config:
    base = load(Path(__file__).with_name("bitnet_tiny.py"))
    return dataclasses.replace(
        base,
        name="bitnet-b158-tiny",
        model=dataclasses.replace(
            base.model, quant=QuantConfig(weights="bitnet_b158", variant="code", groups=4)
        ),
        optim=dataclasses.replace(
            base.optim, schedule="two_stage", learning_rate=2e-2, second_learning_rate=1.3e-2
        ),
    )
