"""A parameter of a block that is not a plain array while a part of the model is adapted."""

import abc
from typing import Any

from paxlike.config import ModelConfig
from paxlike.nn.numerics import Numerics


class Wrapped(abc.ABC):
    """A pytree of stacked shards. Layers use what `whole` makes of it once per step, before the
    loop over the layers, so that a layer sends nothing in addition for it."""

    @abc.abstractmethod
    def whole(self, name: str, config: ModelConfig, numerics: Numerics, summed: bool) -> Any:
        """A pytree with the adapter's arrays gathered as layers use them. name: of the parameter.

        summed: whether their gradients are summed over the devices that hold copies (see
        `Decoder`).
        """

    def in_layer(self) -> Any:
        """What one layer uses as its weight (`nn/weight.py`)."""
        return self
