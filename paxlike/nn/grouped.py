"""Products of rows and the weight of their own group: y[c] = x[c] W[group of c].

Rows are sorted by group. The sizes of the groups add up to C or less: rows behind them belong to no
group, and their results are undefined. Three implementations, chosen by platform
(`Numerics.experts`):

- `ragged`: `jax.lax.ragged_dot`.
- `tpu`: the same, which TPUs run natively, with the weight's gradient by a Pallas kernel. XLA for
  TPUs has no native form of the gradient: it multiplies all rows once for each group.
- `blocks`: a loop over each group's blocks of rows, for CPUs and GPUs, where XLA multiplies every
  row with the weights of all groups instead (docs/experts.md has measurements). The last block of a
  group reaches into the next group's rows, whose own products overwrite its results.

Letters: C rows, E groups (experts); the weight is E x inputs x outputs.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paxlike.accounting.grouped_rows import scope
from paxlike.nn.collectives import gather_weight, scatter_gradient
from paxlike.nn.differentiated import differentiated
from paxlike.nn.einsum import Kernel

Array = jax.Array

BLOCK_ROWS, LEAST_ROWS = 256, 8
"""Most and least rows of a block. Half a block per group is computed in vain; smaller blocks are
slower per row."""


def grouped(
    x: Array, kernel: Kernel, sizes_E: Array, implementation: str, mean_rows: int | None = None
) -> Array:
    """Rows times their expert's weight, on this device's arrays, in x's dtype.

    x: [C, inputs], sorted by expert. sizes_E: int32, rows of each expert. mean_rows: their sum in
    the mean over devices, which counts of FLOPs take; None: C. Like `Kernel.einsum`, it gathers the
    weight over `data` and computes its gradient in the dtype of gradients.
    """
    static = implementation, kernel.places, kernel.gradients, mean_rows or x.shape[0]
    return _multiply(static, x, kernel.shard, sizes_E)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply(static: tuple, x: Array, shard: Array, sizes_E: Array) -> Array:
    implementation, places, _, mean_rows = static
    product, _ = IMPLEMENTATIONS[implementation]
    return product(x, gather_weight(shard, places, x.dtype), sizes_E, False, mean_rows)


def _forward(static, x, shard, sizes_E):
    x, shard, sizes_E = map(differentiated, (x, shard, sizes_E))
    kept = x.kept_for(shard), shard.value, sizes_E.value
    return _multiply(static, x.value, shard.value, sizes_E.value), kept


def _backward(static, kept, dy):
    implementation, places, gradients, mean_rows = static
    product, gradient = IMPLEMENTATIONS[implementation]
    x, shard, sizes_E = kept
    dw = None
    if x is not None:
        dw = gradient(x, dy, sizes_E, gradients, mean_rows)
        dw = scatter_gradient(dw, places, shard.dtype)
    weight = gather_weight(shard, places, dy.dtype)
    return product(dy, weight, sizes_E, True, mean_rows), dw, None


_multiply.defvjp(_forward, _backward, symbolic_zeros=True)


# ---- by jax.lax.ragged_dot -----------------------------------------------------------------------


def _ragged_product(
    x: Array, weight: Array, sizes_E: Array, transposed: bool, mean_rows: int
) -> Array:
    return jax.lax.ragged_dot(x, weight.swapaxes(1, 2) if transposed else weight, sizes_E)


def _ragged_gradient(x: Array, dy: Array, sizes_E: Array, dtype: str, mean_rows: int) -> Array:
    over_rows = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    return jax.lax.ragged_dot_general(
        x, dy, sizes_E, over_rows, preferred_element_type=jnp.dtype(dtype)
    )


# ---- on TPUs -------------------------------------------------------------------------------------

TILES = (512, 256, 128)
"""Rows of a tile of the kernel: the first that divides C."""


def _counted(x: Array, mean_rows: int) -> contextlib.AbstractContextManager:
    """A scope from which counts take the mean rows: the kernels skip those of no group."""
    rows = x.shape[0]
    return (
        contextlib.nullcontext()
        if mean_rows == rows
        else jax.named_scope(scope(mean_rows, 1, rows))
    )


def _kernel_product(
    x: Array, weight: Array, sizes_E: Array, transposed: bool, mean_rows: int
) -> Array:
    with _counted(x, mean_rows):
        return _ragged_product(x, weight, sizes_E, transposed, mean_rows)


def _kernel_gradient(x: Array, dy: Array, sizes_E: Array, dtype: str, mean_rows: int) -> Array:
    """Zeros for an expert without rows."""
    # Imported here because importing Pallas takes as long as the rest of the model.
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    rows = next((tile for tile in TILES if x.shape[0] % tile == 0), 0)
    if not rows:
        return _ragged_gradient(x, dy, sizes_E, dtype, mean_rows)
    with _counted(x, mean_rows):
        return tgmm(
            x.T,
            dy,
            sizes_E,
            preferred_element_type=jnp.dtype(dtype),
            tiling=(rows, min(512, x.shape[1]), min(512, dy.shape[1])),
            interpret=jax.sharding.get_abstract_mesh().abstract_device.platform != "tpu",
        )


# ---- by blocks of rows ---------------------------------------------------------------------------
# The outer loop is over experts, so that each weight is copied once instead of once per block. The
# number of blocks depends on the data, so `accounting/` reads the number of rows from the name of
# the inner loop's scope.


class _Rows(NamedTuple):
    """The rows of one expert."""

    begin: Array
    size: Array


def _block_product(
    x: Array, weight: Array, sizes_E: Array, transposed: bool, mean_rows: int
) -> Array:
    """x W, or x W^T if transposed: [C, outputs]."""
    contracted = 1 if transposed else 0
    size, rows = _block_rows(sizes_E, mean_rows), x.shape[0]
    padded = jnp.pad(x, ((0, size), (0, 0)))

    def expert(y: Array, own: tuple[Array, _Rows]) -> tuple[Array, None]:
        w, mine = own

        def block(number: Array, y: Array) -> Array:
            at = mine.begin + number * size
            part = jax.lax.dynamic_slice_in_dim(padded, at, size)
            out = jax.lax.dot_general(part, w, (((1,), (contracted,)), ((), ())))
            return jax.lax.dynamic_update_slice_in_dim(y, out, at, 0)

        return _for_blocks(mine, sizes_E, mean_rows, block, y), None

    start = jnp.zeros((rows + size, weight.shape[2 - contracted]), x.dtype)
    return jax.lax.scan(expert, start, (weight, _rows_of(sizes_E)))[0][:rows]


def _block_gradient(x: Array, dy: Array, sizes_E: Array, dtype: str, mean_rows: int) -> Array:
    """x^T dy of each expert's rows: [E, inputs, outputs]. Zeros for an expert without rows."""
    size = _block_rows(sizes_E, mean_rows)
    padded_x, padded_dy = (jnp.pad(array, ((0, size), (0, 0))) for array in (x, dy))

    def expert(_: None, mine: _Rows) -> tuple[None, Array]:
        def block(number: Array, dw: Array) -> Array:
            begin = number * size
            is_own = (begin + jnp.arange(size, dtype=jnp.int32) < mine.size)[:, None]

            def own(rows: Array) -> Array:
                part = jax.lax.dynamic_slice_in_dim(rows, mine.begin + begin, size)
                return jnp.where(is_own, part, 0)

            pair = own(padded_x), own(padded_dy)
            return dw + jax.lax.dot_general(
                *pair, (((0,), (0,)), ((), ())), preferred_element_type=dw.dtype
            )

        start = jnp.zeros((x.shape[1], dy.shape[1]), dtype)
        return None, _for_blocks(mine, sizes_E, mean_rows, block, start)

    return jax.lax.scan(expert, None, _rows_of(sizes_E))[1]


def _block_rows(sizes_E: Array, mean_rows: int) -> int:
    """Rows of a block, and of the padding behind the last row: at most an even share."""
    return min(BLOCK_ROWS, max(LEAST_ROWS, -(-mean_rows // sizes_E.shape[0])), mean_rows)


def _rows_of(sizes_E: Array) -> _Rows:
    return _Rows(jnp.cumsum(sizes_E) - sizes_E, sizes_E)


def _for_blocks(
    mine: _Rows, sizes_E: Array, mean_rows: int, block: Callable, start: Array
) -> Array:
    size = _block_rows(sizes_E, mean_rows)
    with jax.named_scope(scope(mean_rows, sizes_E.shape[0], size)):
        return jax.lax.fori_loop(0, (mine.size + size - 1) // size, block, start)


IMPLEMENTATIONS: dict[str, tuple[Callable, Callable]] = {
    "ragged": (_ragged_product, _ragged_gradient),
    "tpu": (_kernel_product, _kernel_gradient),
    "blocks": (_block_product, _block_gradient),
}
"""Name -> (product(x, weight, sizes, transposed, mean rows),
weight gradient(x, dy, sizes, dtype, mean rows))."""
