"""Trained keys and values that every token attends to (prefix-tuning, arXiv 2101.00190).

A prefix is at positions 0 to Q - 1 of every document, and the document's tokens follow it. Its keys
are not rotated: they are trained as attention reads them, after RoPE. So the keys and values of a
real text, as the generation cache has them, are a prefix with the same effect as the text.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.prefix import DIRECT, NETWORK, OUTPUT
from paxlike.config import ModelConfig
from paxlike.nn.adapted import whole_weight
from paxlike.nn.collectives import Leaf
from paxlike.nn.numerics import Numerics
from paxlike.nn.wrapped import Wrapped

Array = jax.Array
NAME = "prefix"
"""The name of a prefix among the parameters of a group of blocks."""


class Prefix(NamedTuple):
    """A prefix as layers use it; stacked, with layers first."""

    k_BQKH: Array
    """The batch is 1 if all rows have the same prefix."""
    v_BQKH: Array
    lengths_B: Array | None = None
    """int32: the first positions of Q that a row has; None: all of them."""

    def mask_BTQ(self, positions_BT: Array, window: int) -> Array | None:
        """Which positions of the prefix a token sees; None: all. window: see `Scores`."""
        places_Q = jnp.arange(self.k_BQKH.shape[1], dtype=jnp.int32)[None]
        masks = []
        if self.lengths_B is not None:
            masks.append((places_Q < self.lengths_B[:, None])[:, None])
        if window:
            masks.append(positions_BT[:, :, None] - places_Q[None] < window)
        return functools.reduce(jnp.logical_and, masks) if masks else None


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("k", "v"), meta_fields=("length",)
)
@dataclasses.dataclass(frozen=True)
class PrefixWeights(Wrapped):
    """Keys and values as parameters, [L, Q, K, H]; or their PartitionSpecs or shapes."""

    k: Leaf
    v: Leaf
    length: int

    def whole(self, name: str, config: ModelConfig, numerics: Numerics, summed: bool) -> Prefix:
        more = (("Q", self.length),)
        k, v = (
            whole_weight(WeightSpec(n, "", more=more), x, config, numerics, summed)
            for n, x in zip(DIRECT, (self.k, self.v), strict=True)
        )
        return Prefix(k[:, None], v[:, None])

    def lengths(self) -> int:
        return self.length


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("outer", "layers"),
    meta_fields=("length", "hidden"),
)
@dataclasses.dataclass(frozen=True)
class PrefixNetwork(Wrapped):
    """The network whose output keys and values are; or its PartitionSpecs or shapes.

    tanh(rows W + b) is the input of the last map, as in the authors' code and PEFT.
    """

    outer: dict[str, Leaf]
    """By the names of `NETWORK`."""
    layers: dict[str, Leaf]
    """By the names of `OUTPUT`, stacked."""
    length: int
    hidden: int

    def whole(self, name: str, config: ModelConfig, numerics: Numerics, summed: bool) -> Prefix:
        more = (("Q", self.length), ("I", self.hidden))

        def weight(name: str) -> Array:
            value = self.outer[name] if name in NETWORK else self.layers[name]
            spec = WeightSpec(name, "", more=more)
            return whole_weight(spec, value, config, numerics, summed)

        rows_QD, in_DI, bias_I = map(weight, NETWORK)
        k_out_LIKH, k_bias_LKH, v_out_LIKH, v_bias_LKH = map(weight, OUTPUT)
        hidden_QI = jnp.tanh(jnp.einsum("QD,DI->QI", rows_QD, in_DI) + bias_I[None])
        k_LQKH = jnp.einsum("QI,LIKH->LQKH", hidden_QI, k_out_LIKH) + k_bias_LKH[:, None]
        v_LQKH = jnp.einsum("QI,LIKH->LQKH", hidden_QI, v_out_LIKH) + v_bias_LKH[:, None]
        return Prefix(k_LQKH[:, None], v_LQKH[:, None])

    def lengths(self) -> int:
        return self.length


def prefix_lengths(params: dict) -> Array | int | None:
    """The length of the prefix that a decoder's parameters have: of each row [B, 1], or one for
    all. None without a prefix.
    """
    for stacks in params.values():
        if isinstance(stacks, dict) and NAME in stacks:
            return stacks[NAME].lengths()
    return None


def document_positions(T: int, segments_BT: Array | None) -> Array:
    """int32 [B, T]: positions that restart at 0 where a document begins. B is 1 without segments.

    segments_BT: document numbers, as a batch has them.
    """
    places_BT = jnp.arange(T, dtype=jnp.int32)[None]
    if segments_BT is None:
        return places_BT
    before_BT = jnp.pad(segments_BT, ((0, 0), (1, 0)))[:, :-1]
    starts_BT = jnp.where(segments_BT != before_BT, places_BT, 0)
    return places_BT - jax.lax.cummax(starts_BT, axis=1)
