"""Products of rows and their own group's weight in a fixed number of blocks, for GPUs.

XLA for GPUs has no kernel of `jax.lax.ragged_dot`: it multiplies every row with the weights of all
groups. And a loop whose number of iterations depends on the data (`blocks` in `nn/grouped.py`)
waits for the device before each iteration. Here every group's rows are cut into blocks; as many
blocks run as any sizes of the groups can need, and the rest of them write to rows that nobody
reads. The last block of a group reaches into the next group's rows, whose own products overwrite
its results.

Letters: C rows, E groups (experts), Z blocks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

PRODUCT_ROWS, GRADIENT_ROWS = 1024, 2048
"""Most rows of a block. Larger blocks compute more rows in vain, up to one block per group. In
smaller ones memory traffic dominates: XLA copies the weight of each block (4 bytes for each number
in bfloat16), and a gradient reads and writes its sum (8 bytes in float32). These sizes have 512
FLOPs per byte of it; an H100 computes about 300 in the time of one.
"""


class _Blocks(NamedTuple):
    group_Z: Array
    begin_Z: Array
    """The first row of each block; C for blocks that are not needed."""
    size_Z: Array
    """Rows that belong to the block's group: at most `rows`."""


def scan_product(x: Array, weight: Array, sizes_E: Array, transposed: bool) -> Array:
    """x W, or x W^T if transposed: [C, outputs]."""
    rows = _rows(x, sizes_E, PRODUCT_ROWS)
    padded = jnp.pad(x, ((0, rows), (0, 0)))
    contracted = 1 if transposed else 0

    def block(y: Array, own: _Blocks) -> tuple[Array, None]:
        w = jax.lax.dynamic_index_in_dim(weight, own.group_Z, keepdims=False)
        part = jax.lax.dynamic_slice_in_dim(padded, own.begin_Z, rows)
        out = jax.lax.dot_general(part, w, (((1,), (contracted,)), ((), ())))
        return jax.lax.dynamic_update_slice_in_dim(y, out, own.begin_Z, 0), None

    start = jnp.zeros((padded.shape[0], weight.shape[2 - contracted]), x.dtype)
    return jax.lax.scan(block, start, _blocks(sizes_E, x.shape[0], rows))[0][: x.shape[0]]


def scan_gradient(x: Array, dy: Array, sizes_E: Array, dtype: str) -> Array:
    """x^T dy of each group's rows: [E, inputs, outputs]. Zeros for a group without rows."""
    rows = _rows(x, sizes_E, GRADIENT_ROWS)
    padded_x, padded_dy = (jnp.pad(array, ((0, rows), (0, 0))) for array in (x, dy))

    def block(dw: Array, own: _Blocks) -> tuple[Array, None]:
        is_own = (jnp.arange(rows, dtype=jnp.int32) < own.size_Z)[:, None]
        # Only one of the factors is masked: the rows of both are finite numbers.
        part_x = jnp.where(is_own, jax.lax.dynamic_slice_in_dim(padded_x, own.begin_Z, rows), 0)
        part_dy = jax.lax.dynamic_slice_in_dim(padded_dy, own.begin_Z, rows)
        old = jax.lax.dynamic_index_in_dim(dw, own.group_Z, keepdims=True)
        new = jax.lax.dot_general(
            part_x, part_dy, (((0,), (0,)), ((), ())), preferred_element_type=dw.dtype
        )
        return jax.lax.dynamic_update_slice_in_dim(dw, old + new[None], own.group_Z, 0), None

    start = jnp.zeros((sizes_E.shape[0], x.shape[1], dy.shape[1]), dtype)
    return jax.lax.scan(block, start, _blocks(sizes_E, x.shape[0], rows))[0]


def _rows(x: Array, sizes_E: Array, most: int) -> int:
    """Rows of a block: at most a quarter of an even share, so that at most a quarter more run."""
    return min(most, max(8, x.shape[0] // (4 * sizes_E.shape[0])), x.shape[0])


def _blocks(sizes_E: Array, C: int, rows: int) -> _Blocks:
    """Every group's blocks, in the order of the rows."""
    E = sizes_E.shape[0]
    numbers_Z = jnp.arange((C + E * (rows - 1)) // rows, dtype=jnp.int32)
    blocks_E = (sizes_E + rows - 1) // rows
    ends_E = jnp.cumsum(blocks_E)
    group_Z = (numbers_Z[:, None] >= ends_E[None]).sum(1, dtype=jnp.int32)
    is_needed_Z = group_Z < E
    group_Z = jnp.minimum(group_Z, E - 1)
    before_Z = (numbers_Z - (ends_E - blocks_E)[group_Z]) * rows
    begin_Z = (jnp.cumsum(sizes_E) - sizes_E)[group_Z] + before_Z
    size_Z = jnp.where(is_needed_Z, jnp.minimum(sizes_E[group_Z] - before_Z, rows), 0)
    return _Blocks(group_Z, jnp.where(is_needed_Z, begin_Z, C), size_Z)
