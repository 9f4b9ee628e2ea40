"""What a kind of adapter is besides its declaration."""

from typing import NamedTuple, Protocol

from paxlike.config import AdaptConfig, ModelConfig
from paxlike.nn.collectives import Leaf


class Draw(NamedTuple):
    """What dropout of one accumulation step is drawn from; or the PartitionSpecs."""

    step: Leaf
    """int32: completed updates."""
    first_row: Leaf
    """The first row of the accumulation step in the batch."""


class Initial(Protocol):
    def __call__(self, model: ModelConfig, adapt: AdaptConfig, seed: int) -> dict:
        """Initial weights in float32, by group and name, and those outside of layers by name."""
        ...


class Wrap(Protocol):
    def __call__(
        self,
        model: ModelConfig,
        adapt: AdaptConfig,
        group: str,
        stacks: dict,
        outer: dict,
        seed: int,
        draw: Draw | None,
    ) -> dict:
        """The stacks of one run of layers as the decoder runs them.

        stacks: the base's and the adapter's by name; outer: the adapter's weights outside of
        layers. seed, draw: of dropout.
        """
        ...


class Form(NamedTuple):
    initial: Initial
    wrap: Wrap
