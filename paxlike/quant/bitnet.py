"""BitLinear (BitNet, arXiv 2310.11453, section 2): weights of +1 and -1, int8 activations, SubLN.

Pure functions on one device's local arrays:

    weights      W~ = Sign(W - alpha), alpha = mean W, beta = mean |W|                    (eq. 1-3)
    activations  x~ = Clip(x Q_b / gamma, -Q_b + e, Q_b - e), gamma = max |x|, Q_b = 128  (eq. 4-5)
    shifted      x~ = Clip((x - eta) Q_b / gamma, e, Q_b - e), eta = min x                (eq. 6-7)
    product      y = W~ x~ beta gamma / Q_b                                               (eq. 11)

The shifted form is for the input of a projection before a non-linearity. Statistics are taken per
tile, token or group, according to how the caller shapes the arrays (eq. 13-15). `axes` names the
mesh axes that a statistic is also reduced over. It is empty if groups follow the shards; then
nothing is communicated.

The paper and the code published later (The Era of 1-bit LLMs: training tips, code and FAQ) differ:

| | paper | code |
|---|---|---|
| Sign(0) | -1 | 0 |
| activations | 128 / gamma, clipped to -127 ... 127 | 127 / gamma, clipped to -128 ... 127 |
| norm | layer norm | RMS norm |

The paper does not specify rounding, but implies int8. This implementation rounds to the nearest
integer; e is one step of that grid.

Ternary weights (arXiv 2402.17764, eq. 1-3): W~ = RoundClip(W / beta, -1, 1),
beta = max(mean |W|, 1e-5), in both variants.
"""

import jax
import jax.numpy as jnp

from paxlike.config import QuantConfig

Array = jax.Array
Axes = tuple[str, ...]

SMALLEST = 1e-5
"""Lower bound of beta (ternary weights) and gamma (activations), as in the published code."""

UNROLLED = 4
"""Number of tile products that are unrolled. More than this run as a loop, compiled once."""


def quantize_weight(
    w: Array, tiles: tuple[int, int], quant: QuantConfig, axes: Axes = ()
) -> tuple[Array, Array]:
    """Quantizes a matrix [inputs, outputs], with one alpha and beta per tile.

    Returns int8 signs (-1, 0, +1) in its shape, and float32 beta [input tiles, output tiles].
    """
    rows, columns = tiles
    w4 = w.astype(jnp.float32).reshape(rows, w.shape[0] // rows, columns, w.shape[1] // columns)

    def mean(x: Array) -> Array:
        return _mean(x, (1, 3), axes)

    beta = mean(jnp.abs(w4))
    if quant.weights == "bitnet_b158":
        beta = jnp.maximum(beta, SMALLEST)
        signs = jnp.clip(jnp.round(w4 / beta), -1, 1)
    elif quant.variant == "paper":
        signs = jnp.where(w4 > mean(w4), 1, -1)
    else:
        signs = jnp.sign(w4 - mean(w4))
    return signs.astype(jnp.int8).reshape(w.shape), beta[:, 0, :, 0]


def dequantize_weight(signs: Array, beta: Array, dtype: jnp.dtype) -> Array:
    """Returns W~ beta, [inputs, outputs]."""
    (rows, columns), (inputs, outputs) = beta.shape, signs.shape
    w4 = signs.astype(dtype).reshape(rows, inputs // rows, columns, outputs // columns)
    return (w4 * beta.astype(dtype)[:, None, :, None]).reshape(signs.shape)


def quantize_activation(
    x: Array,
    groups: int,
    quant: QuantConfig,
    axes: Axes = (),
    batch_axes: Axes = (),
    *,
    shifted: bool = False,
) -> tuple[Array, Array]:
    """Quantizes x [B, T, inputs] to int8, so that x~ * scale is about x (if shifted: x - eta).

    axes: mesh axes that a group is sharded over. batch_axes: mesh axes that tokens are sharded
    over. Returns int8 x~ in x's shape and float32 scale [B, T, groups], or [1, 1, groups] if
    statistics are per tensor.
    """
    B, T, inputs = x.shape
    x4 = x.astype(jnp.float32).reshape(B, T, groups, inputs // groups)
    over, axes = ((3,), axes) if quant.per_token else ((0, 1, 3), axes + batch_axes)
    gamma = jnp.maximum(_max(jnp.abs(x4), over, axes), SMALLEST)
    steps = 128.0 if quant.variant == "paper" else 127.0
    lowest = -127.0 if quant.variant == "paper" else -128.0
    if shifted:
        x4, lowest = x4 + _max(-x4, over, axes), 1.0
    ints = jnp.clip(jnp.round(x4 * (steps / gamma)), lowest, 127.0).astype(jnp.int8)
    return ints.reshape(x.shape), (gamma / steps)[..., 0]


def product(x_ints: Array, x_scale: Array, signs: Array, beta: Array, integer: bool) -> Array:
    """Returns float32 y [B, T, outputs]: the sum over input tiles of (x~ W~) * scale * beta.

    integer: multiply in int8 and accumulate in int32. Otherwise multiply in floating point. Both
    are bitwise equal: a sum of fewer than 2^17 products of at most 127 is below 2^24, so float32
    represents it exactly.
    """
    tiles, groups = beta.shape[0], x_scale.shape[-1]
    inputs, outputs = signs.shape
    rows = inputs // tiles

    def add(total: Array | float, tile: int | Array) -> tuple[Array, None]:
        # The compiler removes a full-size slice, so one tile compiles to one product.
        sums = _integer_product(
            jax.lax.dynamic_slice_in_dim(x_ints, tile * rows, rows, 2),
            jax.lax.dynamic_slice_in_dim(signs, tile * rows, rows, 0),
            integer,
        )
        scale = jax.lax.dynamic_slice_in_dim(x_scale, tile * groups // tiles, 1, 2)
        return total + sums * (
            scale * jnp.repeat(beta[tile], outputs // beta.shape[1])[None, None]
        ), None

    if tiles == 1:
        return add(0.0, 0)[0]
    zeros = jnp.zeros((*x_ints.shape[:2], outputs), jnp.float32)
    return jax.lax.scan(add, zeros, jnp.arange(tiles), unroll=min(tiles, UNROLLED))[0]


def _integer_product(x: Array, w: Array, integer: bool) -> Array:
    contracted = (((2,), (0,)), ((), ()))
    if integer:
        return jax.lax.dot_general(x, w, contracted, preferred_element_type=jnp.int32).astype(
            jnp.float32
        )
    # bfloat16 represents integers up to 256 exactly, but XLA's CPU has no fast bfloat16 matmul.
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jax.lax.dot_general(
        x.astype(dtype), w.astype(dtype), contracted, preferred_element_type=jnp.float32
    )


# ---- SubLN ---------------------------------------------------------------------------------------


def sub_norm(x: Array, groups: int, quant: QuantConfig, epsilon: float, axes: Axes = ()) -> Array:
    """Layer or RMS norm of each group of x [B, T, inputs], without a scale (eq. 16), in float32."""
    x4 = _grouped(x, groups)
    if quant.variant == "paper":
        x4 = x4 - _mean(x4, (3,), axes)
    return (x4 * jax.lax.rsqrt(_mean(jnp.square(x4), (3,), axes) + epsilon)).reshape(x.shape)


def _grouped(x: Array, groups: int) -> Array:
    return x.astype(jnp.float32).reshape(*x.shape[:2], groups, -1)


def _mean(x: Array, over: tuple[int, ...], axes: Axes) -> Array:
    mean = x.mean(over, keepdims=True)
    return jax.lax.pmean(mean, axes) if axes else mean


def _max(x: Array, over: tuple[int, ...], axes: Axes) -> Array:
    largest = x.max(over, keepdims=True)
    return jax.lax.pmax(largest, axes) if axes else largest
