"""Norms against their formulas in float64, and their gradients against differences of those formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paxlike.nn.norm import norm

EPSILON = 1e-3  # large enough to be seen where a row is small


def exact(x, scale, kind, epsilon=EPSILON):
    """The formula in float64."""
    x, scale = x.astype(np.float64), scale.astype(np.float64)
    if kind == "layer":
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * scale
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def draw(dtype="float32"):
    """Rows of magnitudes 0.01 … 100 that are not centered, and scales that are not 1."""
    random = np.random.default_rng(0)
    x = (random.normal(size=(2, 5, 16)) + 0.7) * 10.0 ** random.integers(-2, 3, (2, 5, 1))
    return x.astype(jnp.dtype(dtype)), random.uniform(0.5, 2, 16).astype(np.float32), random.normal(size=x.shape)


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


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_the_gradients(kind):
    """Against central differences of the float64 formula, along every coordinate of x and of the scale."""
    x, scale, weights = draw()
    dx, dscale = jax.grad(lambda x, s: (norm(x, s, kind, EPSILON) * weights).sum(), argnums=(0, 1))(x, scale)

    def slope(wide, at, of):
        """Of the weighted sum, as `wide[at]` moves by a small part of its row's size."""
        step = 1e-5 * max(np.abs(wide[at[:-1]]).max(), 1e-3)
        low, high = (wide.astype(np.float64) for _ in range(2))
        low[at] -= step
        high[at] += step
        return ((of(high) - of(low)) * weights).sum() / (2 * step)

    wanted_dx = np.reshape([slope(x, at, lambda x: exact(x, scale, kind)) for at in np.ndindex(x.shape)], x.shape)
    wanted_dscale = [slope(scale, at, lambda s: exact(x, s, kind)) for at in np.ndindex(scale.shape)]
    largest = np.abs(wanted_dx).max(-1, keepdims=True)
    np.testing.assert_allclose(dx / largest, wanted_dx / largest, rtol=0, atol=2e-5)
    np.testing.assert_allclose(dscale, wanted_dscale, rtol=2e-5, atol=1e-5)
