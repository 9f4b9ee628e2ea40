"""Layer norm and RMS norm, with a scale and no bias (PaLM, section 2; Zhang & Sennrich, arXiv 1910.07467)."""

import jax
import jax.numpy as jnp


def norm(x_BTD: jax.Array, scale_D: jax.Array, kind: str, epsilon: float) -> jax.Array:
    """`kind` is `layer` or `rms`. Statistics and scaling in float32; the result has x's dtype and sharding."""
    wide_BTD = x_BTD.astype(jnp.float32)
    if kind == "layer":
        wide_BTD = wide_BTD - wide_BTD.mean(-1, keepdims=True)
    power_BT1 = jnp.square(wide_BTD).mean(-1, keepdims=True)
    normed_BTD = wide_BTD * jax.lax.rsqrt(power_BT1 + epsilon)
    return (normed_BTD * scale_D.astype(jnp.float32)[None, None, :]).astype(x_BTD.dtype)
