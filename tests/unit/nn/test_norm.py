"""Norms against their formulas in float64, and their gradients against differences of these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of, put

from paxlike.nn.collectives import on_devices
from paxlike.nn.norm import head_norm, norm
from paxlike.parallel.mesh import spec

EPSILON = 1e-3  # large enough to matter in rows of small values


def exact(x, scale, kind, epsilon=EPSILON):
    """The formula in float64."""
    x, scale = x.astype(np.float64), scale.astype(np.float64)
    if kind == "layer":
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * scale
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def draw(dtype="float32"):
    """Rows of magnitudes 0.01 to 100 that are not centered; scales that are not 1; a cotangent."""
    random = np.random.default_rng(0)
    x = (random.normal(size=(2, 5, 16)) + 0.7) * 10.0 ** random.integers(-2, 3, (2, 5, 1))
    return (
        x.astype(jnp.dtype(dtype)),
        random.uniform(0.5, 2, 16).astype(np.float32),
        random.normal(size=x.shape),
    )


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2**-8)])
def test_the_formula(kind, dtype, tolerance):
    """In bfloat16 the result is the exact one, rounded once: statistics and scaling are float32."""
    x, scale, _ = draw(dtype)
    found = norm(x, scale, kind, EPSILON)
    assert found.dtype == x.dtype
    wanted = exact(x, scale, kind)
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=tolerance, atol=2e-6)


def test_a_bfloat16_scale_is_multiplied_in_float32():
    x, scale, _ = draw()
    scale = scale.astype(jnp.bfloat16)
    np.testing.assert_allclose(norm(x, scale, "rms", EPSILON), exact(x, scale, "rms"), rtol=2e-6)


def test_the_norm_of_a_head():
    """RMS norm over H, with one scale for all heads."""
    x, scale, _ = draw()
    x_BTNH = x.reshape(2, 5, 4, 4)
    found = head_norm(x_BTNH, scale[:4], EPSILON)
    np.testing.assert_allclose(found, exact(x_BTNH, scale[:4], "rms"), rtol=2e-6, atol=2e-6)
    narrow = head_norm(x_BTNH.astype(jnp.bfloat16), scale[:4], EPSILON)
    wanted = exact(np.asarray(x_BTNH.astype(jnp.bfloat16)), scale[:4], "rms")
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(narrow, np.float64), wanted, rtol=2**-8, atol=2e-6)


def sharded_norm(x_BTD, scale_D, kind):
    """`norm` of global arrays on the active mesh."""
    x_spec = spec("BTD", x_BTD.shape)

    def device(x, scale):
        return norm(x, scale, kind, EPSILON)

    return on_devices(device, (x_spec, spec("D", scale_D.shape)), x_spec)(x_BTD, scale_D)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 4)], ids=["1x1", "2x4"])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_the_gradients(kind, sizes):
    """Against central differences of the float64 formula, along each coordinate of x and scale.

    On 2 x 4, D is sharded and the statistics are means over `model`.
    """
    x, scale, weights = draw()
    with jax.set_mesh(mesh_of(*sizes)):
        arrays = put("BTD", x), put("D", scale), put("BTD", weights.astype(np.float32))

        @jax.jit
        def both(x, scale, weights):
            y, pull = jax.vjp(lambda *given: sharded_norm(*given, kind), x, scale)
            return y, *pull(weights)

        y, dx, dscale = jax.device_get(both(*arrays))
    np.testing.assert_allclose(y, exact(x, scale, kind), rtol=2e-6, atol=2e-6)
    assert_gradients(x, scale, weights, dx, dscale, lambda x, s: exact(x, s, kind))


def test_the_gradients_of_the_norm_of_a_head():
    x, scale, weights = draw()
    x, scale, weights = x.reshape(2, 5, 4, 4), scale[:4], weights.reshape(2, 5, 4, 4)
    dx, dscale = jax.grad(lambda *given: (head_norm(*given, EPSILON) * weights).sum(), (0, 1))(
        x, scale
    )
    assert_gradients(x, scale, weights, dx, dscale, lambda x, s: exact(x, s, "rms"))


def assert_gradients(x, scale, weights, dx, dscale, formula):
    def slope(wide, at, of):
        """Of the weighted sum, when `wide[at]` changes by a small fraction of its row's size."""
        step = 1e-5 * max(np.abs(wide[at[:-1]]).max(), 1e-3)
        low, high = (wide.astype(np.float64) for _ in range(2))
        low[at] -= step
        high[at] += step
        return ((of(high) - of(low)) * weights).sum() / (2 * step)

    wanted_dx = np.reshape(
        [slope(x, at, lambda x: formula(x, scale)) for at in np.ndindex(x.shape)], x.shape
    )
    wanted_dscale = [slope(scale, at, lambda s: formula(x, s)) for at in np.ndindex(scale.shape)]
    largest = np.abs(wanted_dx).max(-1, keepdims=True)
    np.testing.assert_allclose(dx / largest, wanted_dx / largest, rtol=0, atol=2e-5)
    np.testing.assert_allclose(dscale, wanted_dscale, rtol=2e-5, atol=1e-5)
