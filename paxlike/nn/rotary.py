"""Rotary position embeddings (Su et al., arXiv 2104.09864), in the half-split layout.

Dimension i is rotated with i + R/2, where the paper rotates 2i with 2i + 1 (R rotated dimensions).
The two are the same function up to a fixed permutation of the head dimension; this one avoids
strided memory access.
"""

import math

import jax
import jax.numpy as jnp

from paxlike.config import RopeScalingConfig

Array = jax.Array
NO_SCALING = RopeScalingConfig()


def rotate(
    x_BTNH: Array,
    positions_BT: Array,
    theta: float,
    scaling: RopeScalingConfig = NO_SCALING,
    fraction: float = 1.0,
) -> Array:
    """Rotates queries or keys by their positions (int32; the batch may be 1).

    fraction: the part of each head's dimensions that is rotated; the rest, at the end, is not.
    Angles are computed in float32. Returns x's dtype.
    """
    head_dim = x_BTNH.shape[-1]
    rotated = rotated_dims(head_dim, fraction)
    half = rotated // 2
    frequencies_H = _scaled(theta ** (-jnp.arange(half, dtype=jnp.float32) / half), theta, scaling)
    angles_BT1H = (
        positions_BT[:, :, None, None].astype(jnp.float32) * frequencies_H[None, None, None, :]
    )
    cos, sin = jnp.cos(angles_BT1H), jnp.sin(angles_BT1H)
    if (magnitude := attention_factor(scaling)) != 1.0:
        cos, sin = cos * magnitude, sin * magnitude
    wide_BTNH = x_BTNH.astype(jnp.float32)
    first, second = jnp.split(wide_BTNH[..., :rotated], 2, axis=-1)
    parts = [first * cos - second * sin, second * cos + first * sin]
    if rotated < head_dim:
        parts.append(wide_BTNH[..., rotated:])
    return jnp.concatenate(parts, axis=-1).astype(x_BTNH.dtype)


def rotated_dims(head_dim: int, fraction: float) -> int:
    """The number of rotated dimensions of a head, which is even."""
    return int(head_dim * fraction) // 2 * 2


def attention_factor(scaling: RopeScalingConfig) -> float:
    """Factor of cosines and sines: of queries and keys (YaRN, arXiv 2309.00071, section 3.4)."""
    if scaling.kind != "yarn":
        return 1.0
    return scaling.attention_factor or (
        0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    )


def _scaled(frequencies_H: Array, theta: float, scaling: RopeScalingConfig) -> Array:
    """Frequencies for contexts longer than those of the first training, by the scaling's kind."""
    if scaling.kind == "linear":  # Chen et al., arXiv 2306.15595
        return frequencies_H / scaling.factor
    if scaling.kind == "llama3":
        return _by_wavelength(frequencies_H, scaling)
    if scaling.kind == "yarn":
        return _by_ramp(frequencies_H, theta, scaling)
    return frequencies_H


def _by_wavelength(frequencies_H: Array, scaling: RopeScalingConfig) -> Array:
    """Llama 3.1: long wavelengths are divided by the factor, short ones kept, with a linear
    transition (arXiv 2407.21783; the reference code of the model).
    """
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    rotations_H = scaling.original_length * frequencies_H / (2 * math.pi)
    kept_H = jnp.clip((rotations_H - low) / (high - low), 0.0, 1.0)
    return (1 - kept_H) * frequencies_H / scaling.factor + kept_H * frequencies_H


def _by_ramp(frequencies_H: Array, theta: float, scaling: RopeScalingConfig) -> Array:
    """YaRN, "NTK-by-parts" (arXiv 2309.00071, section 3.2): a linear ramp over the dimensions."""
    half = frequencies_H.shape[0]

    def dimension(rotations: float) -> float:
        """The dimension that makes this many rotations in the original context."""
        return (
            half * math.log(scaling.original_length / (rotations * 2 * math.pi)) / math.log(theta)
        )

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    width = high - low if high != low else 0.001
    kept_H = 1 - jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / width, 0.0, 1.0)
    return (1 - kept_H) * frequencies_H / scaling.factor + kept_H * frequencies_H
