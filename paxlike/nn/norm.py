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
    offset: bool = False,
) -> Array:
    """The norm of the stream, whose D is sharded over `axes`. `kind` is `layer` or `rms`.

    offset: the factor is 1 + scale (as in Gemma's code). Statistics (means over all of D) and
    scaling in float32; the result has x's dtype.
    """
    wide_BTD = x_BTD.astype(jnp.float32)
    if kind == "layer":
        wide_BTD = wide_BTD - mean(wide_BTD.mean(-1, keepdims=True), axes)
    power_BT1 = mean(jnp.square(wide_BTD).mean(-1, keepdims=True), axes)
    normed_BTD = wide_BTD * jax.lax.rsqrt(power_BT1 + epsilon)
    normed_BTD = normed_BTD * _factor(scale_D, offset)[None, None, :]
    if bias_D is not None:
        normed_BTD += bias_D.astype(jnp.float32)[None, None, :]
    return normed_BTD.astype(x_BTD.dtype)


def head_norm(
    x_BTNH: Array,
    scale: Array,
    epsilon: float,
    kind: str = "head",
    axes: tuple[str, ...] = (),
    offset: bool = False,
) -> Array:
    """Norm of query or key heads. `kind` is a value of `model.qk_norm`.

    scale: [H] for `head`, [N, H] otherwise. axes: the mesh axes over which the heads are sharded.
    Statistics and scaling in float32; the result has x's dtype.
    """
    wide_BTNH = x_BTNH.astype(jnp.float32)
    if kind == "layer":
        wide_BTNH = wide_BTNH - wide_BTNH.mean(-1, keepdims=True)
    power_BTN1 = jnp.square(wide_BTNH).mean(-1, keepdims=True)
    if kind == "heads":
        power_BTN1 = mean(power_BTN1.mean(-2, keepdims=True), axes)
    normed_BTNH = wide_BTNH * jax.lax.rsqrt(power_BTN1 + epsilon)
    factor = jnp.expand_dims(_factor(scale, offset), range(4 - scale.ndim))
    return (normed_BTNH * factor).astype(x_BTNH.dtype)


def _factor(scale: Array, offset: bool) -> Array:
    wide = scale.astype(jnp.float32)
    return 1 + wide if offset else wide
