"""Packing values of one or two bits into bytes."""

import jax.numpy as jnp
import numpy as np
import pytest

from paxlike.quant.packing import pack, unpack


@pytest.mark.parametrize(("bits", "rows"), [(1, 16), (1, 13), (2, 8), (2, 7)])
def test_packing_round_trip(bits, rows):
    values = (
        np.random.default_rng(0)
        .choice([-1, 1] if bits == 1 else [-1, 0, 1], (3, rows, 5))
        .astype(np.int8)
    )
    packed = pack(jnp.asarray(values), bits)
    assert packed.dtype == jnp.uint8 and packed.shape == (3, -(-rows * bits // 8), 5)
    np.testing.assert_array_equal(unpack(packed, bits, rows), values)


def test_bit_order():
    """The first row is the lowest bit."""
    assert pack(jnp.array([[1], [-1], [-1], [1]], jnp.int8), 1).tolist() == [[0b1001]]
    assert pack(jnp.array([[1], [-1], [0]], jnp.int8), 2).tolist() == [[0b010010]]
