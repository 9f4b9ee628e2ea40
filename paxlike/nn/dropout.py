"""Dropout that depends on an entry's place in the global batch, and not on the mesh."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paxlike.nn.collectives import Leaf, index
from paxlike.parallel import rules

Array = jax.Array


class Noise(NamedTuple):
    """What a layer's dropout is drawn from, uint32; or the PartitionSpecs."""

    key: Leaf
    """One number for each step, weight and layer."""
    first_row: Leaf
    """The first row of the accumulation step in the batch."""


def noise_key(seed: int, step: Array, weight: int, layers: int) -> Array:
    """uint32 [layers]: a key for each layer of a weight in a step."""
    start = mixed(jnp.uint32(seed) ^ mixed(step.astype(jnp.uint32) + np.uint32(0x68E31DA4)))
    numbers = jnp.arange(layers, dtype=jnp.uint32) + np.uint32(weight * 0x10000)
    return mixed(numbers ^ start)


def drop(x: Array, *, noise: Noise, rate: float, first_column: Array | int) -> Array:
    """x [B, T, ...] with a part `rate` of its entries 0, the others divided by 1 - rate.

    Rows are sharded like the batch; first_column is the place of this device's first entry
    of the flattened dimensions after T. An entry's fate is a hash of its row, position and column.
    """
    B, T, *columns = x.shape
    count = int(np.prod(columns))
    device = index(rules.BATCH_AXES)
    first_row = jnp.asarray(noise.first_row, jnp.uint32) + jnp.asarray(device * B, jnp.uint32)
    rows_B = jnp.arange(B, dtype=jnp.uint32) + first_row
    positions_T = jnp.arange(T, dtype=jnp.uint32)
    places_C = jnp.arange(count, dtype=jnp.uint32) + jnp.asarray(first_column, jnp.uint32)
    rows_B = mixed(rows_B ^ noise.key)
    rows_BT = mixed(rows_B[:, None] ^ (positions_T * np.uint32(0x9E3779B1))[None])
    bits = mixed(rows_BT[:, :, None] ^ (places_C * np.uint32(0x85EBCA77))[None, None])
    kept = (bits >= np.uint32(min(round(rate * 2**32), 2**32 - 1))).reshape(x.shape)
    return jnp.where(kept, x * (1 / (1 - rate)), 0).astype(x.dtype)


def mixed(x: Array) -> Array:
    """The finalizer of a 32-bit hash: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
