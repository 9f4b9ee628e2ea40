"""Weights of one or two bits, packed into bytes.

One bit is 1 for +1 and 0 for -1; two bits are the value plus 1 (0, 1 or 2). A byte holds the next rows of one column, the first of
them in its lowest bits; the last byte of a column is filled up with zeros.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def pack(values: Array, bits: int) -> Array:
    """int8 [..., rows, columns] of -1, +1 (and 0 where bits is 2) -> uint8 [..., ceil(rows * bits / 8), columns]."""
    *stack, rows, columns = values.shape
    each = 8 // bits
    codes = (values > 0).astype(jnp.uint8) if bits == 1 else (values + 1).astype(jnp.uint8)
    codes = jnp.pad(codes, [*[(0, 0)] * len(stack), (0, -rows % each), (0, 0)])
    codes = codes.reshape(*stack, -1, each, columns)
    return jnp.sum(codes << _shifts(each, bits, codes.ndim), axis=-2, dtype=jnp.uint8)


def unpack(packed: Array, bits: int, rows: int) -> Array:
    """Undoes `pack`: int8 [..., rows, columns]."""
    *stack, _, columns = packed.shape
    each = 8 // bits
    shifts = _shifts(each, bits, packed.ndim + 1)
    codes = (packed[..., None, :] >> shifts) & jnp.uint8(2**bits - 1)
    codes = codes.reshape(*stack, -1, columns)[..., :rows, :].astype(jnp.int8)
    return codes * 2 - 1 if bits == 1 else codes - 1


def _shifts(each: int, bits: int, ndim: int) -> Array:
    return (jnp.arange(each, dtype=jnp.uint8) * bits).reshape(*(1,) * (ndim - 2), each, 1)
