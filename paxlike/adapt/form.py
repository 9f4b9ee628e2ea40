"""What a kind of adapter is besides its declaration."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from paxlike.config import AdaptConfig, ModelConfig
from paxlike.nn.collectives import Leaf
from paxlike.nn.numerics import Numerics


class Draw(NamedTuple):
    """What dropout of one accumulation step is drawn from."""

    seed: int
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
        draw: Draw | None,
    ) -> dict:
        """The stacks of one run of layers as the decoder runs them.

        stacks: the base's and the adapter's by name; outer: the adapter's weights outside of
        layers. draw: of dropout; None: there is none.
        """
        ...


class Merge(Protocol):
    def __call__(
        self,
        model: ModelConfig,
        adapt: AdaptConfig,
        numerics: Numerics | None,
        group: str,
        stacks: dict,
        trained: dict,
        derived: dict,
    ) -> dict:
        """The stacks of all layers of a group for inference, with the update in the weights if they
        can have it.

        stacks: the base's by name. trained: as in a checkpoint. derived: see `adapt.derived`.
        numerics: None where the weights can have it.
        """
        ...


class Derive(Protocol):
    def __call__(
        self, model: ModelConfig, adapt: AdaptConfig, base: dict, say: Callable[[str], None]
    ) -> dict:
        """What is computed from the base on the active mesh (`Added.derived`), and shown."""
        ...


class Form(NamedTuple):
    initial: Initial
    wrap: Wrap
    merge: Merge
    beside: Callable[[ModelConfig], str]
    """Why the adapter cannot be in the weights of this model; empty if it can."""
    derive: Derive = lambda model, adapt, base, say: {}
    check: Callable[[ModelConfig, AdaptConfig, dict, dict], None] = (
        lambda model, adapt, base, derived: None
    )
    """Raises UserError if what was derived is not of this base."""
    constrain: Callable[[ModelConfig, AdaptConfig, dict], dict] = lambda model, adapt, trained: (
        trained
    )
    """The trained parameters after an update, on the set that they are kept on."""
