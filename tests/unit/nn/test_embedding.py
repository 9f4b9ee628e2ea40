"""Lookups in a table that is sharded both ways: devices find their rows and sum their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import error, mesh_of, put, sharded_lookup
from jax.sharding import NamedSharding

from paxlike.parallel.mesh import weight_spec

B, T, D, V = 8, 5, 16, 24


def both(sizes, table, tokens, cotangent, **dtypes):
    """(x_BTD, the table's gradient), on the host, and the gradient's sharding."""
    with jax.set_mesh(mesh_of(*sizes)):
        places = NamedSharding(jax.sharding.get_mesh(), weight_spec("VD", table.shape))

        @jax.jit
        def run(table, tokens, cotangent):
            x, pullback = jax.vjp(lambda table: sharded_lookup(table, tokens, **dtypes), table)
            return x, *pullback(cotangent)

        x, gradient = run(jax.device_put(table, places), put("BT", tokens), put("BTD", cotangent))
        assert gradient.sharding.is_equivalent_to(places, 2)
        return jax.device_get(x), jax.device_get(gradient)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 4), (2, 2, 2)])
def test_rows_and_their_gradients(sizes):
    """Tokens repeat and include each shard's first and last row; some rows never occur."""
    random = np.random.default_rng(0)
    table = random.standard_normal((V, D)).astype(np.float32)
    tokens = random.choice([0, 5, 6, 11, 12, 17, 18, 23], (B, T)).astype(np.int32)
    cotangent = random.standard_normal((B, T, D)).astype(np.float32)
    x, gradient = both(sizes, table, tokens, cotangent, compute="float32", gradients="float32")
    np.testing.assert_array_equal(x, table[tokens])
    expected = np.zeros((V, D))
    np.add.at(expected, tokens, np.float64(cotangent))
    assert error(gradient, expected) < 1e-6
    assert not gradient[1:5].any()


def test_sums_in_the_dtype_of_gradients():
    """300 ones: a bfloat16 sum of ones stops at 256, a float32 sum does not."""
    table, tokens = np.ones((V, D), np.float32), np.full((1, 300), 7, np.int32)
    cotangent = np.ones((1, 300, D), jnp.bfloat16)
    found = {}
    for dtype in ("float32", "bfloat16"):
        x, gradient = both((1, 1, 1), table, tokens, cotangent, compute="bfloat16", gradients=dtype)
        assert (x.dtype, gradient.dtype) == (jnp.bfloat16, np.float32)
        found[dtype] = gradient[7, 0]
    assert found["float32"] == 300 and found["bfloat16"] < 300
