"""Layer norm and RMS norm, with a scale (PaLM, section 2; Zhang & Sennrich, arXiv 1910.07467)."""

import jax
import jax.numpy as jnp

from paxlike.nn.collectives import mean

Array = jax.Array


def norm(
    x_BTD: Array,
    scale_D: Array,
    kind: str,
    epsilon: float,
    axes: tuple[str, ...] = ("model",),
    bias_D: Array | None = None,
) -> Array:
    """The norm of the stream, whose D is sharded over `axes`. `kind` is `layer` or `rms`.

    Statistics (means over all of D) and scaling in float32; the result has x's dtype.
    """
    wide_BTD = x_BTD.astype(jnp.float32)
    if kind == "layer":
        wide_BTD = wide_BTD - mean(wide_BTD.mean(-1, keepdims=True), axes)
    power_BT1 = mean(jnp.square(wide_BTD).mean(-1, keepdims=True), axes)
    normed_BTD = wide_BTD * jax.lax.rsqrt(power_BT1 + epsilon)
    normed_BTD = normed_BTD * scale_D.astype(jnp.float32)[None, None, :]
    if bias_D is not None:
        normed_BTD += bias_D.astype(jnp.float32)[None, None, :]
    return normed_BTD.astype(x_BTD.dtype)


def head_norm(x_BTNH: Array, scale_H: Array, epsilon: float) -> Array:
    """RMS norm of every head. Statistics and scaling in float32; the result has x's dtype."""
    wide_BTNH = x_BTNH.astype(jnp.float32)
    power_BTN1 = jnp.square(wide_BTNH).mean(-1, keepdims=True)
    normed_BTNH = wide_BTNH * jax.lax.rsqrt(power_BTN1 + epsilon)
    return (normed_BTNH * scale_H.astype(jnp.float32)[None, None, None]).astype(x_BTNH.dtype)
