"""Products of sorted rows with their own group's weight, and their gradients, against NumPy."""

import jax
import numpy as np
import pytest
from helpers import mesh_of
from jax.sharding import PartitionSpec as P

from paxlike.nn import grouped
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
    monkeypatch.setitem(grouped.BLOCK_ROWS, "cpu", 4)
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


@pytest.mark.parametrize("implementation", grouped.IMPLEMENTATIONS)
@pytest.mark.parametrize("sizes", [(40, 0, 100, 30), (0, 0, 0, 0)], ids=["some", "none"])
def test_rows_behind_those_of_the_groups_do_not_matter(implementation, sizes):
    """Of 256 rows, as buffers for expert parallelism have them. Kernels may leave anything there,
    so in theirs it is NaN."""
    random, used, rows = np.random.default_rng(0), sum(sizes), 256
    shapes = (rows, 6), (4, 6, 5), (rows, 5)
    x, w, dy = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
    x[used:] = dy[used:] = 1e3 if implementation == "ragged" else np.nan
    group = np.repeat(np.arange(4), sizes)

    def multiply(x, w):
        kernel = Kernel(w, (None, "data", "model"), "float32")
        return grouped.grouped(x, kernel, np.array(sizes, np.int32), implementation, 128)

    with jax.set_mesh(mesh_of()):
        run = jax.jit(on_devices(multiply, (P(), P()), P()))
        y, pullback = jax.vjp(run, x, w)
        dx, dw = pullback(dy)
    x, dy = x[:used], dy[:used]
    np.testing.assert_allclose(y[:used], np.einsum("cd,cdm->cm", x, w[group]), atol=1e-5)
    np.testing.assert_allclose(dx[:used], np.einsum("cm,cdm->cd", dy, w[group]), atol=1e-5)
    expected = np.zeros_like(w)
    np.add.at(expected, group, x[:, :, None] * dy[:, None])
    np.testing.assert_allclose(dw, expected, atol=5e-5)
