"""The declaration of a branch: a part of a block that reads the normed stream and adds to it.

A branch declares its weights, the matrix products of its forward pass, the activations that its
backward pass reads, and what it caches for generation. Everything that is counted or laid out is
derived from this; nothing is listed a second time. Imports no JAX.
"""

import dataclasses
from typing import Literal, NamedTuple, Protocol

from paxlike.config import ModelConfig
from paxlike.parallel.axes import letters_of, sizes


@dataclasses.dataclass(frozen=True)
class WeightSpec:
    """One weight of one layer, declared by its letters."""

    name: str
    """Ends in the letters of its dimensions: `wq_DNH`."""
    part: str
    """The part of the model that it is counted under, such as `attention q`."""
    kind: Literal["kernel", "expert", "router", "embedding", "scale", "bias", "selection"] = (
        "kernel"
    )
    """kernel: drawn from N(0, 1/sqrt(fan-in)). embedding: N(0, 1). scale: ones. bias: zeros.
    expert: kernels of all experts. router: a kernel that multiplies in float32. Both start as a
    kernel does, and are neither quantized nor adapted. selection: a bias without a gradient, which
    starts at 0 and which the train step moves (`nn/routing.py`).
    """
    feeds_activation: bool = False
    """Whether the result goes through the feed-forward's non-linearity (BitNet's shifted input)."""
    more: tuple[tuple[str, int], ...] = ()
    """(letter, size) of dimensions that no model has, in a weight of an adapter."""

    @property
    def letters(self) -> str:
        return letters_of(self.name)

    def shape(self, model: ModelConfig) -> tuple[int, ...]:
        """As stored, without layers: V counts the rows that pad the vocabulary."""
        size = {**sizes(model), **dict(self.more)}
        return tuple(size[letter] for letter in self.letters)

    def active_shape(self, model: ModelConfig) -> tuple[int, ...]:
        """What one token uses of it: of all experts, `top_k`."""
        size = {**sizes(model), **dict(self.more)}
        size["E"] = model.experts.top_k if self.kind == "expert" else size["E"]
        return tuple(size[letter] for letter in self.letters)


class Product(NamedTuple):
    """A matrix product of the forward pass."""

    name: str
    part: str
    """The part of the model that it is reported under, such as `attention projections`."""
    formula: str
    """FLOPs per token of all layers, in the letters of `accounting/flops.py`."""
    flops: int
    """Per token, in one layer."""
    kept_as: str | None
    """The name under which a rematerialization policy may keep the result; None: never kept."""
    needed: bool = True
    """Whether the backward pass reads the result. False for the product that adds to the stream; a
    serial block reads it where another norm follows."""
    is_attention: bool = False
    """A product of two activations (scores, values), which the attention kernel runs."""
    window: int = 0
    """Of such a product: the keys that a query attends to at most. 0: all."""
    tokens: int = 0
    """The tokens of a sequence that a routed block multiplies. 0: all."""
    input_gradient: bool = True
    """Whether the backward pass computes the gradient of the input."""

    def length(self, sequence_length: int) -> int:
        """The tokens of a sequence that are multiplied."""
        return self.tokens or sequence_length

    def keys(self, sequence_length: int) -> int:
        """Keys per query by the conventions that do not count the causal mask."""
        length = self.length(sequence_length)
        return min(self.window or length, length)


class Activation(NamedTuple):
    """Arrays that the backward pass of one layer reads, on one device."""

    name: str
    bytes_per_token: int
    kept_as: str | None


class ActivationSizes(NamedTuple):
    """What the bytes of an activation depend on besides the model."""

    model_shards: int
    expert_shards: int
    bytes: int
    """Of one number in the compute dtype."""
    sequence_length: int
    fused: bool
    """Only what matrix products read and write, as where a layer's forward and backward pass are
    compiled together; otherwise also the intermediate steps of norms and activations."""
    scores_kept: bool
    """Whether the attention kernel keeps its probabilities (`reference`)."""


class Branch(Protocol):
    """A branch's declaration. `models/branches.py` maps its name to its forward pass."""

    @property
    def name(self) -> str: ...

    def weights(self, model: ModelConfig) -> tuple[WeightSpec, ...]:
        """In the order of initialization."""
        ...

    def products(self, model: ModelConfig, sequence_length: int) -> tuple[Product, ...]:
        """Matrix products per token, attention in full (not causal)."""
        ...

    def activations(self, model: ModelConfig, sizes: ActivationSizes) -> tuple[Activation, ...]: ...

    def cache(self, model: ModelConfig) -> dict[str, str]:
        """Name -> letters of each array of one layer's generation cache.

        S is its length, W the newest tokens only (`model.sliding_window`).
        """
        ...
