"""Rotary position embeddings (Su et al., arXiv 2104.09864), in the half-split layout.

Dimension i is rotated with i + H/2, where the paper rotates 2i with 2i + 1. The two are the same
function up to a fixed permutation of the head dimension; this one avoids strided memory access.
"""

import jax
import jax.numpy as jnp


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
    """Rotates queries or keys by their positions (int32; the batch may be 1).

    Angles are computed in float32. Returns x's dtype.
    """
    half = x_BTNH.shape[-1] // 2
    frequencies_H = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles_BT1H = (
        positions_BT[:, :, None, None].astype(jnp.float32) * frequencies_H[None, None, None, :]
    )
    cos, sin = jnp.cos(angles_BT1H), jnp.sin(angles_BT1H)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    ).astype(x_BTNH.dtype)
