"""A kernel with shifted singular values: W + U diag(relu(s + shift) - s) V^T (SVDiff, arXiv
2303.11305, section 3.1, written as a sum so that shifts of 0 leave every bit of W).

U has its inputs sharded like W's, V its outputs, and R is whole. So a device makes its own shard of
the sum without communication, in the layer that uses it. The gradient of the sum exists in one
layer at a time, too: autodiff contracts a shard of it with the same shards of U and V. The results
are terms of a sum over all devices, which is taken once per step, after the loop over the layers.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from paxlike.config import ModelConfig
from paxlike.nn.collectives import Leaf, sum_gradient_over_copies
from paxlike.nn.numerics import Numerics
from paxlike.nn.wrapped import Wrapped

Array = jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("base", "left", "values", "right", "shift"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Shifted(Wrapped):
    """A kernel, its decomposition and the shifts, in place of the kernel; or their PartitionSpecs
    or shapes."""

    base: Leaf
    left: Leaf
    """U: float32, inputs x R."""
    values: Leaf
    """float32 [R]."""
    right: Leaf
    """V^T: float32, R x outputs."""
    shift: Leaf

    def whole(self, name: str, config: ModelConfig, numerics: Numerics, summed: bool) -> "Shifted":
        if not summed:
            return self
        places = (None,) * self.shift.ndim
        return dataclasses.replace(
            self, shift=sum_gradient_over_copies(self.shift, places, "float32")
        )

    def in_layer(self) -> Array:
        return shifted(self.base, self.left, self.values, self.right, self.shift)


def shifted(base: Array, left: Array, values: Array, right: Array, shift: Array) -> Array:
    """A shard of one layer's kernel with shifted singular values, float32, from shards."""
    rank = values.shape[-1]
    change = jax.nn.relu(values + shift) - values
    update = jnp.matmul(
        left.reshape(-1, rank) * change[None], right.reshape(rank, -1), precision="highest"
    )
    return base.astype(jnp.float32) + update.reshape(base.shape)
