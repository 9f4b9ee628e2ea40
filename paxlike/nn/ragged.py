"""Rows sorted by expert travel to the devices of their experts along `expert`, and back.

Sizes and offsets say for every pair of a sender and an expert how many rows go where: they arrive
sorted by expert, and of one expert by sender, so that nothing is sorted a second time. The way
there and the way back are each other's transposes, given as such: the transpose that JAX derives
sends the same rows, but computes the offsets with two more exchanges and masks a buffer that
starts as zeros.

`jax.lax.ragged_all_to_all` sends the rows. XLA for CPUs does not have it: there an all-to-all of
equal blocks, each with room for all rows, does exactly the same.

Letters: S senders, the devices along `expert`; E experts; P experts of one device.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paxlike.nn.collectives import index
from paxlike.parallel.mesh import axis_sizes

Array = jax.Array


class Slices(NamedTuple):
    """The slices of an exchange, int32, as many to each device: see `jax.lax.ragged_all_to_all`."""

    input_offsets: Array
    send_sizes: Array
    output_offsets: Array
    """Where a slice that this device sends begins at its receiver."""
    recv_sizes: Array


class Ways(NamedTuple):
    there: Slices
    """By expert: to the devices in order, to each one's experts in order."""
    back: Slices
    """By sender, of each one by expert of this device."""


def ways(sizes_SE: Array) -> Ways:
    """sizes_SE: int32, rows of each sender for each expert, on every device."""
    senders, experts = sizes_SE.shape
    me, count = index("expert"), experts // senders
    mine_SP = jax.lax.dynamic_slice_in_dim(sizes_SE, me * count, count, 1)
    # Where each sender's rows of an expert begin in the sender's rows, and at the expert's device.
    at_sender_SE = _before(sizes_SE, 1)
    totals_SP = sizes_SE.sum(0).reshape(senders, count)
    at_expert_SE = _before(totals_SP, 1).reshape(1, experts) + _before(sizes_SE, 0)

    def own(x_SE: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(x_SE, me, 0, keepdims=False)

    def of_my_experts(x_SE: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x_SE, me * count, count, 1).reshape(-1)

    sent_E, came = own(sizes_SE), mine_SP.reshape(-1)
    there = Slices(own(at_sender_SE), sent_E, own(at_expert_SE), came)
    return Ways(
        there, Slices(of_my_experts(at_expert_SE), came, of_my_experts(at_sender_SE), sent_E)
    )


def _before(x: Array, dim: int) -> Array:
    """The sum of all entries in front of each."""
    return jnp.cumsum(x, dim) - x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def exchanged(rows: tuple[int, int], x: Array, way: Slices, other: Slices) -> Array:
    """x [rows[0], ...] -> [rows[1], ...]: what arrives, and zeros where nothing does.

    way: of `Ways`. other: the other one. Gradients of rows that were not sent are 0.
    """
    start = jnp.zeros((rows[1], *x.shape[1:]), x.dtype)
    if jax.sharding.get_abstract_mesh().abstract_device.platform == "cpu":
        return _by_equal_blocks(x, start, way)
    return jax.lax.ragged_all_to_all(x, start, *way, axis_name="expert")


exchanged.defvjp(
    lambda rows, x, way, other: (exchanged(rows, x, way, other), (way, other)),
    lambda rows, ways, dy: (exchanged(rows[::-1], dy, ways[1], ways[0]), None, None),
)


def _by_equal_blocks(x: Array, start: Array, way: Slices) -> Array:
    """`jax.lax.ragged_all_to_all` by an all-to-all of blocks with room for all rows."""
    devices = axis_sizes()["expert"]
    room = min(x.shape[0], start.shape[0])
    to_all = functools.partial(
        jax.lax.all_to_all, axis_name="expert", split_axis=0, concat_axis=0, tiled=True
    )
    # Of each slice, where it begins in the block of its device.
    sent = _places(way.input_offsets, way.send_sizes, devices, room)
    arrive = _places(to_all(way.output_offsets), way.recv_sizes, devices, room)
    blocks = x.at[sent].get(mode="fill", fill_value=0)
    return start.at[arrive].set(to_all(blocks), mode="drop")


def _places(offsets: Array, sizes: Array, devices: int, room: int) -> Array:
    """int32 [devices * room]: the row of an array at each place of the devices' blocks, in which
    slices lie one behind the other; a row behind all arrays for an empty place."""
    offsets, sizes = (x.reshape(devices, -1) for x in (offsets, sizes))
    ends = jnp.cumsum(sizes, 1)
    places = jnp.arange(room, dtype=jnp.int32)
    slices = jax.vmap(lambda ends: jnp.searchsorted(ends, places, side="right"))(ends)
    at = jnp.minimum(slices, ends.shape[1] - 1)
    begins = jnp.take_along_axis(ends - sizes, at, 1)
    rows = jnp.take_along_axis(offsets, at, 1) + places[None] - begins
    behind = jnp.iinfo(jnp.int32).max
    return jnp.where(places[None] < ends[:, -1:], rows, behind).reshape(-1)
