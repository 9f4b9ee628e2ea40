"""Several adapters in one batch: every row has the update or the prefix of its own.

Adapters are stacked along a dimension after the layers, with zeros for a weight that one of them
does not change. Number 0 is the base alone. `with_rows` says which adapter each row has.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paxlike.config import ModelConfig
from paxlike.nn.collectives import Leaf
from paxlike.nn.einsum import Multiplier
from paxlike.nn.numerics import Numerics
from paxlike.nn.prefix import NAME, Prefix
from paxlike.nn.stream import Stream
from paxlike.nn.wrapped import Wrapped

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowFactors(Wrapped):
    """A parameter and the LoRA factors of all adapters (`nn/adapted.py`); or its PartitionSpecs.

    The input dimensions of A and the output dimensions of B are sharded over `model` as the
    parameter's are, except for D.
    """

    base: Leaf
    a: Leaf
    """[L, adapters, inputs, R]"""
    b: Leaf
    """[L, adapters, R, outputs], times the scale of the update."""
    rows: Leaf
    """int32 [B]: the adapter of each row; [L, B] in use."""

    def whole(self, name: str, config: ModelConfig, numerics: Numerics, summed: bool) -> Any:
        rows = jnp.broadcast_to(self.rows, (self.a.shape[0], *self.rows.shape))
        return dataclasses.replace(self, rows=rows)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowPrefixes(Wrapped):
    """The prefixes of all adapters; or its PartitionSpecs."""

    k: Leaf
    """[L, adapters, Q, K, H]"""
    v: Leaf
    counts: Leaf
    """int32 [adapters]: the positions that an adapter has of Q, the first ones."""
    rows: Leaf
    """int32 [B]: the adapter of each row."""

    def whole(self, name: str, config: ModelConfig, numerics: Numerics, summed: bool) -> Prefix:
        layers = self.k.shape[0]
        lengths_B = self.counts[self.rows]
        lengths_LB = jnp.broadcast_to(lengths_B, (layers, *lengths_B.shape))
        return Prefix(self.k[:, self.rows], self.v[:, self.rows], lengths_LB)

    def lengths(self) -> Array:
        # As a sum, which keeps the sharding of rows in a program of global arrays.
        numbers = jnp.arange(self.counts.shape[0], dtype=jnp.int32)[None]
        chosen_BA = self.rows[:, None] == numbers
        return jnp.where(chosen_BA, self.counts[None], 0).sum(1, keepdims=True)


class RowKernel:
    """A `Multiplier`: the base's product, and each row's own update."""

    def __init__(self, base: Multiplier, factors: RowFactors):
        self.base, self.factors = base, factors

    def einsum(self, equation: str, x: Array | Stream) -> Any:
        inputs, out = equation.split("->")
        x_letters, w_letters = inputs.split(",")
        inner = "".join(letter for letter in w_letters if letter in x_letters)
        outer = w_letters.removeprefix(inner)
        source = self.base.read(x)
        source = source.whole_BTD if isinstance(source, Stream) else source
        a, b = (
            factor[self.factors.rows].astype(source.dtype)
            for factor in (self.factors.a, self.factors.b)
        )
        down = f"{x_letters},B{inner}R"
        low_BTR = jnp.einsum(f"{down}->BTR", source, a)
        y: Any = self.base.einsum(equation, x)
        return y + jnp.einsum(f"BTR,BR{outer}->{out}", low_BTR, b)

    def read(self, x: Array | Stream) -> Array | Stream:
        return self.base.read(x)


def with_rows(params: dict, rows: Any) -> dict:
    """Parameters with `rows` as the adapters of a batch's rows."""

    def one(value: Any) -> Any:
        several = isinstance(value, RowFactors | RowPrefixes)
        return dataclasses.replace(value, rows=rows) if several else value

    return jax.tree.map(one, params, is_leaf=lambda value: isinstance(value, Wrapped))


def prefix_counts(params: dict) -> np.ndarray:
    """int [adapters]: the positions of each adapter's prefix, or of the one that all rows have."""
    for stacks in params.values():
        if isinstance(stacks, dict) and NAME in stacks:
            prefix = stacks[NAME]
            several = isinstance(prefix, RowPrefixes)
            return np.asarray(prefix.counts) if several else np.array([prefix.length])
    return np.zeros(1, np.int32)
