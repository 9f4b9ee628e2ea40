"""BitNet (arXiv 2310.11453) with the size of `tiny.py`: one or two minutes on two CPU cores.

    paxlike train configs/bitnet_tiny.py
    paxlike train configs/bitnet_tiny.py --fake-devices 8 --mesh.model 4  # same loss, 2 x 4 mesh

The blocks' weights are +1 and -1 in 4 quantization groups, so that a `model` axis of 1, 2 or 4
needs no communication for their statistics. The loss falls to about 5.15 on the validation split
(docs/quantization.md has three seeds). The learning rate is the best of six.
"""

import dataclasses
from pathlib import Path

from paxlike.config import Config, QuantConfig, load


def config() -> Config:
    tiny = load(Path(__file__).with_name("tiny.py"))
    return dataclasses.replace(
        tiny,
        name="bitnet-tiny",
        model=dataclasses.replace(tiny.model, quant=QuantConfig(weights="bitnet", groups=4)),
        optim=dataclasses.replace(tiny.optim, learning_rate=2e-2, clip=0.0),
    )
