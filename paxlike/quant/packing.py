"""Packs weights of one or two bits into bytes.

One-bit codes are 1 for +1 and 0 for -1. Two-bit codes are the value plus 1 (0, 1 or 2). A byte
holds consecutive rows of one column, first row in the lowest bits. The last byte of a column is
zero-padded.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def pack(values: Array, bits: int) -> Array:
    """Packs int8 values [..., rows, columns] into uint8 [..., ceil(rows * bits / 8), columns].

    Values are -1 and +1; with 2 bits, also 0.
    """
    *stack, rows, columns = values.shape
    per_byte = 8 // bits
    codes = (values > 0).astype(jnp.uint8) if bits == 1 else (values + 1).astype(jnp.uint8)
    codes = jnp.pad(codes, [*[(0, 0)] * len(stack), (0, -rows % per_byte), (0, 0)])
    codes = codes.reshape(*stack, -1, per_byte, columns)
    return jnp.sum(codes << _shifts(per_byte, bits, codes.ndim), axis=-2, dtype=jnp.uint8)


def unpack(packed: Array, bits: int, rows: int) -> Array:
    """The inverse of `pack`. Returns int8 [..., rows, columns]."""
    *stack, _, columns = packed.shape
    per_byte = 8 // bits
    shifts = _shifts(per_byte, bits, packed.ndim + 1)
    codes = (packed[..., None, :] >> shifts) & jnp.uint8(2**bits - 1)
    codes = codes.reshape(*stack, -1, columns)[..., :rows, :].astype(jnp.int8)
    return codes * 2 - 1 if bits == 1 else codes - 1


def _shifts(per_byte: int, bits: int, ndim: int) -> Array:
    return (jnp.arange(per_byte, dtype=jnp.uint8) * bits).reshape(*(1,) * (ndim - 2), per_byte, 1)
