"""The residual stream: how a branch reads it and how its output returns to it.

Its D is sharded over `model`. It is gathered and scattered whole (`nn/collectives.py`) or in ring
steps (`nn/ring.py`), as the weights that multiply it choose.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from paxlike.nn.collectives import gather, index, scatter
from paxlike.nn.ring import Partial, gathered_pieces

Array = jax.Array


class Stream:
    """The residual stream as a branch reads it. D is sharded over `model`; a branch needs all of
    it.

    It is gathered once, where it is first asked for, however many weights multiply it.
    """

    def __init__(self, shard_BTD: Array):
        self.shard_BTD = shard_BTD
        """This device's part of D."""
        self.derived: dict = {}
        """Results that several weights share, such as a quantized copy; by what they depend on."""

    @functools.cached_property
    def whole_BTD(self) -> Array:
        """All of D, gathered over `model`."""
        return gather(self.shard_BTD, "model", 2)

    @functools.cached_property
    def pieces_BTD(self) -> tuple[Array, ...]:
        """All of D, in ring steps."""
        return gathered_pieces(self.shard_BTD)


@dataclasses.dataclass(frozen=True)
class Summed:
    """This device's shard of a sum over `model` that has been taken, and a partial sum to add."""

    shard_BTD: Array
    rest: Any = None
    """An array, or a `Partial` in pieces; None: nothing."""

    def astype(self, dtype: jax.typing.DTypeLike) -> "Summed":
        rest = None if self.rest is None else self.rest.astype(dtype)
        return Summed(self.shard_BTD.astype(dtype), rest)

    def __add__(self, other: Array | Partial) -> "Summed":
        return Summed(self.shard_BTD, other if self.rest is None else self.rest + other)

    def __radd__(self, other: Array | Partial | int) -> "Summed":
        """For `sum`, too, which starts with 0."""
        return self if isinstance(other, int) else self + other

    def add_once(self, shard_D: Array) -> "Summed":
        """Adds a vector, of which each device has a shard."""
        added = self.shard_BTD + shard_D.astype(self.shard_BTD.dtype)[None, None]
        return dataclasses.replace(self, shard_BTD=added)

    def scattered(self) -> Array:
        return self.shard_BTD + (0 if self.rest is None else scatter_stream(self.rest))


def scatter_stream(partial_BTD: Array | Partial | Summed) -> Array:
    """A branch's output, a sum over `model` of what each device has of all D -> its shard of D."""
    if isinstance(partial_BTD, Partial | Summed):
        return partial_BTD.scattered()
    return scatter(partial_BTD, "model", 2)


def add_once(partial_BTD: Any, shard_D: Array) -> Any:
    """Adds a vector, of which each device has a shard, to a sum over `model`: each entry once."""
    if isinstance(partial_BTD, Partial | Summed):
        return partial_BTD.add_once(shard_D)
    start = index("model") * shard_D.shape[0]
    zeros_D = jnp.zeros(partial_BTD.shape[-1], partial_BTD.dtype)
    own_D = jax.lax.dynamic_update_slice(zeros_D, shard_D.astype(partial_BTD.dtype), (start,))
    return partial_BTD + own_D[None, None]
