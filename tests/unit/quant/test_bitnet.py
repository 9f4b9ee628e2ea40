"""The arithmetic of BitLinear on one device, against the formulas of the papers and the code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_bitnet as reference
from helpers import error

from paxlike.config import QuantConfig
from paxlike.quant import bitnet

KINDS = {
    "paper": QuantConfig(weights="bitnet", statistics="token"),
    "paper-tensor": QuantConfig(weights="bitnet", statistics="tensor"),
    "code": QuantConfig(weights="bitnet", variant="code"),
    "ternary-paper": QuantConfig(weights="bitnet_b158", statistics="token"),
    "ternary-code": QuantConfig(weights="bitnet_b158", variant="code"),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def quant(request):
    return request.param


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_every_tile_of_a_weight_follows_the_formulas(quant):
    w = draw(12, 30) + 0.3
    signs, beta = bitnet.quantize_weight(w, (3, 5), quant)
    wanted, wanted_beta = reference.weight(w, (3, 5), quant)
    np.testing.assert_array_equal(signs, wanted)
    assert error(jnp.repeat(jnp.repeat(beta, 4, 0), 6, 1), wanted_beta) < 1e-6
    assert error(bitnet.dequantize_weight(signs, beta, jnp.float32), wanted * wanted_beta) < 1e-6


def test_the_sign_of_zero():
    """A weight equal to the mean is -1 in the paper, and 0 in the published code and if ternary."""
    w = jnp.array([[-1.0, 0.0, 1.0]])
    found = {
        name: bitnet.quantize_weight(w, (1, 1), quant)[0].tolist()[0]
        for name, quant in KINDS.items()
    }
    assert found["paper"] == [-1, -1, 1]
    assert found["code"] == found["ternary-paper"] == found["ternary-code"] == [-1, 0, 1]


def test_ternary_weights_round_at_half_the_mean():
    """With mean |W| 1, weights above 0.5 are +-1. A tile of zeros has the least scale, not 0."""
    quant = KINDS["ternary-code"]
    signs, beta = bitnet.quantize_weight(jnp.array([[0.4, 0.6, -0.6, 2.4]]), (1, 1), quant)
    assert signs.tolist() == [[0, 1, -1, 1]] and beta.tolist() == [[1.0]]
    signs, beta = bitnet.quantize_weight(jnp.zeros((2, 2)), (1, 1), quant)
    assert not signs.any() and beta.item() == pytest.approx(1e-5)


def test_activations_follow_the_formulas(quant):
    x = draw(2, 3, 24)
    for shifted in (False, True)[: 1 + (quant.variant == "paper")]:
        ints, scale = bitnet.quantize_activation(x, 3, quant, shifted=shifted)
        wanted, wanted_scale = reference.activation(x, 3, quant, shifted)
        np.testing.assert_array_equal(ints, wanted)
        assert ints.dtype == jnp.int8
        assert error(np.broadcast_to(np.repeat(scale, 8, -1), x.shape), wanted_scale) < 1e-6


def test_the_ends_of_the_range():
    """The largest |x| is clipped to 127 of 128 steps in the paper, and is 127 of 127 in the code.
    Shifted, values are 1 to 127."""
    x = jnp.array([[[-2.0, 0.5, 2.0]]])
    assert bitnet.quantize_activation(x, 1, KINDS["paper"])[0].tolist() == [[[-127, 32, 127]]]
    assert bitnet.quantize_activation(x, 1, KINDS["code"])[0].tolist() == [[[-127, 32, 127]]]
    assert bitnet.quantize_activation(x, 1, KINDS["paper"], shifted=True)[0].tolist() == [
        [[1, 127, 127]]
    ]
    assert bitnet.quantize_activation(x, 1, KINDS["paper"])[1].item() == 2 / 128
    assert bitnet.quantize_activation(x, 1, KINDS["code"])[1].item() == np.float32(2 / 127)


def test_one_large_token_coarsens_others_only_with_a_scale_of_the_tensor():
    x = jnp.concatenate([jnp.full((1, 1, 4), 100.0), jnp.array([[[0.1, 0.2, 0.3, 0.4]]])], axis=1)
    tokens, _ = bitnet.quantize_activation(x, 1, KINDS["paper"])
    tensor, _ = bitnet.quantize_activation(x, 1, KINDS["paper-tensor"])
    assert tokens[0, 1].tolist() == [32, 64, 96, 127] and tensor[0, 1].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("groups", [1, 4])
def test_sub_norm_and_its_gradient(quant, groups):
    """The gradient against central differences of the float64 formula."""
    x, dy = draw(2, 3, 24), draw(2, 3, 24, seed=1)
    normed, pull = jax.vjp(lambda x: bitnet.sub_norm(x, groups, quant, 1e-3), x)
    assert normed.dtype == jnp.float32
    assert error(normed, reference.norm(x, groups, quant, 1e-3)) < 1e-6
    assert error(pull(dy)[0], reference.norm_gradient(x, dy, groups, quant, 1e-3)) < 1e-6


@pytest.mark.parametrize("tiles", [(1, 1), (1, 5), (4, 1), (4, 5)], ids=str)
def test_int8_products_equal_the_float_emulation_bit_for_bit(quant, tiles, monkeypatch):
    """In int8, in float32 as on CPUs, or in bfloat16 as elsewhere: equal numbers, and close to the
    definition."""
    x, w = draw(2, 3, 64), draw(64, 40, seed=1)
    groups = min(2, tiles[0])
    ints, scale = bitnet.quantize_activation(x, groups, quant)
    signs, beta = bitnet.quantize_weight(w, tiles, quant)
    by_integers = bitnet.product(ints, scale, signs, beta, integer=True)
    np.testing.assert_array_equal(
        by_integers, bitnet.product(ints, scale, signs, beta, integer=False)
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_array_equal(
        by_integers, bitnet.product(ints, scale, signs, beta, integer=False)
    )
    (xq, x_scale), (wq, w_scale) = (
        reference.activation(x, groups, quant),
        reference.weight(w, tiles, quant),
    )
    assert error(by_integers, (xq * x_scale) @ (wq * w_scale)) < 1e-6
