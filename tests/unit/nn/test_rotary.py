"""Rotary embeddings against multiplication of complex numbers, and what they are for."""

import jax.numpy as jnp
import numpy as np
import pytest
import reference

from paxlike.config import ConfigError, ModelConfig, RopeScalingConfig
from paxlike.nn.rotary import rotate

THETA = 10_000.0


def turned(x_BTNH, positions_BT, theta=THETA):
    """x[i] + x[i + H/2] j, times exp(j position theta^(-2i/H)), in complex128."""
    half = x_BTNH.shape[-1] // 2
    x = x_BTNH.astype(np.float64)
    z = x[..., :half] + 1j * x[..., half:]
    z = z * np.exp(
        1j * positions_BT[:, :, None, None] * theta ** (-2 * np.arange(half) / (2 * half))
    )
    return np.concatenate([z.real, z.imag], -1)


def draw(batch=2, length=12, heads=3, head_dim=8, dtype="float32"):
    return (
        np.random.default_rng(0)
        .normal(size=(batch, length, heads, head_dim))
        .astype(jnp.dtype(dtype))
    )


@pytest.mark.parametrize("theta", [THETA, 500.0])
def test_complex_multiplication(theta):
    x, positions = draw(), np.random.default_rng(1).integers(0, 200, (2, 12)).astype(np.int32)
    np.testing.assert_allclose(rotate(x, positions, theta), turned(x, positions, theta), atol=5e-5)


def test_one_row_of_positions_serves_the_batch():
    x, positions = draw(), np.arange(12, dtype=np.int32)[None]
    np.testing.assert_array_equal(
        rotate(x, positions, THETA), rotate(x, positions.repeat(2, 0), THETA)
    )


def test_position_zero_is_left_alone_and_lengths_are_kept():
    x, positions = draw(), np.arange(12, dtype=np.int32)[None]
    found = np.asarray(rotate(x, positions, THETA))
    np.testing.assert_array_equal(found[:, 0], x[:, 0])
    assert np.abs(found[:, 1:] - x[:, 1:]).max() > 0.5
    np.testing.assert_allclose((found**2).sum(-1), (x**2).sum(-1), rtol=1e-5)


def test_bfloat16_is_rotated_in_float32():
    """A bfloat16 angle would be whole turns off at position 2,000. Only the result is rounded."""
    x, positions = draw(dtype="bfloat16"), np.full((1, 12), 2001, np.int32)
    found = rotate(x, positions, THETA)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(found, np.float64), turned(x, positions), rtol=2**-8, atol=2e-3
    )


def test_only_the_distance_matters():
    """q at t times k at s depends on t - s alone: it changes only if one of them is shifted."""
    q, k = draw(1, 12, 1), np.random.default_rng(2).normal(size=(1, 12, 1, 8)).astype(np.float32)
    t, s = (np.random.default_rng(n).integers(0, 50, (1, 12)).astype(np.int32) for n in (3, 4))

    def score(t, s):
        return (np.asarray(rotate(q, t, THETA)) * np.asarray(rotate(k, s, THETA))).sum(-1)

    for shift in (1, 13, 400):
        np.testing.assert_allclose(score(t + shift, s + shift), score(t, s), atol=2e-4)
        assert np.abs(score(t + shift, s) - score(t, s)).max() > 0.1


SCALINGS = [
    RopeScalingConfig("linear", 4.0),
    RopeScalingConfig("llama3", 8.0, 64, 1.0, 4.0),
    RopeScalingConfig("yarn", 4.0, 64),
    RopeScalingConfig("yarn", 16.0, 64, beta_fast=8.0, beta_slow=0.5, attention_factor=1.5),
    RopeScalingConfig("yarn", 4.0, 64, beta_fast=20.0, beta_slow=2.0, truncate=False),
]


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("scaling", [RopeScalingConfig(), *SCALINGS])
def test_scaled_and_partial_rotation(scaling, fraction):
    x, positions = draw(head_dim=32), np.arange(300, 312, dtype=np.int32)
    model = ModelConfig(head_dim=32, rope_theta=500.0, rope_scaling=scaling, rope_fraction=fraction)
    found = rotate(x, positions[None], 500.0, scaling, fraction)
    expected = reference.rotate(x.swapaxes(1, 2).astype(np.float64), positions, model)
    np.testing.assert_allclose(found, expected.swapaxes(1, 2), atol=1e-4)


def test_what_scaling_changes():
    """llama3 keeps the fastest frequency and divides the slowest; yarn raises the logits."""
    far = np.full((1, 1), 1000, np.int32)
    ones = np.ones((1, 1, 1, 64), np.float32)
    plain, scaled = (
        np.asarray(rotate(ones, far, THETA, scaling))[0, 0, 0]
        for scaling in (RopeScalingConfig(), RopeScalingConfig("llama3", 8.0, 256))
    )
    assert plain[0] == scaled[0] and abs(plain[31] - scaled[31]) > 0.05
    yarn = np.asarray(rotate(ones, far, THETA, RopeScalingConfig("yarn", 4.0, 256)))
    norm = np.linalg.norm(yarn) / np.linalg.norm(ones)
    assert norm == pytest.approx(0.1 * np.log(4) + 1, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": 2.0}, "factor is set, but model.rope_scaling.kind is none"),
        ({"kind": "linear", "factor": 0.0}, "factor is 0.0; it must be greater than 0"),
        (
            {"kind": "llama3", "low_frequency_factor": 4.0},
            "low_frequency_factor 4.0 must be below high_frequency_factor 4.0",
        ),
        ({"kind": "yarn", "beta_slow": 40.0}, "beta_slow 40.0 must be below beta_fast 32.0"),
        ({"kind": "yarn", "attention_factor": -1.0}, "attention_factor is -1.0"),
    ],
)
def test_scalings_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        RopeScalingConfig(**fields)


def test_fractions_that_cannot_be():
    for fraction in (0.0, 1.5, 0.01):
        with pytest.raises(ConfigError, match=f"model.rope_fraction is {fraction}"):
            ModelConfig(rope_fraction=fraction)
