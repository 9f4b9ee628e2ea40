"""Products of sorted rows with their own group's weight, and their gradients, against NumPy."""

import jax
import numpy as np
import pytest
from helpers import mesh_of
from jax.sharding import PartitionSpec as P

from paxlike.accounting.jaxpr import count_products
from paxlike.nn import grouped, grouped_scan
from paxlike.nn.collectives import on_devices
from paxlike.nn.einsum import Kernel

SIZES = {
    "uneven": (5, 0, 9, 3),
    "one-expert": (0, 17, 0, 0),
    "last-expert": (0, 0, 0, 17),
    "whole-blocks": (4, 8, 4, 1),
    "tiles-of-the-kernel": (40, 0, 200, 144),
}


@pytest.mark.parametrize("implementation", grouped.IMPLEMENTATIONS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_products_and_gradients(monkeypatch, implementation, sizes):
    """An expert without rows has a gradient of exactly 0."""
    monkeypatch.setattr(grouped, "BLOCK_ROWS", 4)
    monkeypatch.setattr(grouped_scan, "PRODUCT_ROWS", 4)
    monkeypatch.setattr(grouped_scan, "GRADIENT_ROWS", 3)
    random, rows = np.random.default_rng(0), sum(sizes)
    shapes = (rows, 6), (4, 6, 5), (rows, 5)
    x, w, dy = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    group = np.repeat(np.arange(4), sizes)

    def multiply(x, w):
        kernel = Kernel(w, (None, "data", "model"), "float32")
        return grouped.grouped(x, kernel, np.array(sizes, np.int32), implementation)

    with jax.set_mesh(mesh_of()):
        run = jax.jit(on_devices(multiply, (P(), P()), P()))
        y, pullback = jax.vjp(run, x, w)
        dx, dw = pullback(dy)
    np.testing.assert_allclose(y, np.einsum("cd,cdm->cm", x, w[group]), atol=1e-5)
    np.testing.assert_allclose(dx, np.einsum("cm,cdm->cd", dy, w[group]), atol=1e-5)
    expected = np.zeros_like(w)
    np.add.at(expected, group, x[:, :, None] * dy[:, None])
    np.testing.assert_allclose(dw, expected, atol=5e-5)
    assert not np.asarray(dw)[[size == 0 for size in sizes]].any()


@pytest.mark.parametrize("name", ["product", "gradient"])
def test_blocks_of_a_fixed_number_compute_at_most_a_quarter_in_vain(name):
    """XLA for GPUs computes eight times the rows for `ragged_dot` with eight groups."""
    rows, experts, inputs, outputs = 4096, 8, 16, 32
    x, dy = (jax.ShapeDtypeStruct((rows, width), "float32") for width in (inputs, outputs))
    weight = jax.ShapeDtypeStruct((experts, inputs, outputs), "float32")
    sizes = jax.ShapeDtypeStruct((experts,), "int32")
    product, gradient = grouped.IMPLEMENTATIONS["scan"]
    traced = {
        "product": lambda: jax.make_jaxpr(product, static_argnums=3)(x, weight, sizes, False),
        "gradient": lambda: jax.make_jaxpr(gradient, static_argnums=3)(x, dy, sizes, "float32"),
    }[name]()
    counted, needed = count_products(traced).total, 2 * rows * inputs * outputs
    assert needed < counted <= 1.25 * needed
