"""BitNet's BitLinear (arXiv 2310.11453, section 2): weights of +1 and -1, int8 activations, SubLN. Pure functions on a device's own arrays.

    weights      W~ = Sign(W - alpha), alpha = mean W, beta = mean |W|                                (equations 1 to 3)
    activations  x~ = Clip(x Q_b / gamma, -Q_b + e, Q_b - e), gamma = max |x|, Q_b = 128              (equations 4 and 5)
    before a non-linearity, where asked for: x~ = Clip((x - eta) Q_b / gamma, e, Q_b - e), eta = min x  (equations 6 and 7)
    product      y = W~ x~ beta gamma / Q_b                                                           (equation 11)

with statistics of a tile, a token, a group, as the caller shapes them (equations 13 to 15). `axes` names the mesh axes that a statistic
is taken over beside the device's own numbers; it is empty where groups follow the shards, and then nothing is communicated.

| | paper | code (The Era of 1-bit LLMs: training tips, code and FAQ) |
|---|---|---|
| Sign(0) | -1 | 0 |
| activations | 128 / gamma, clipped to -127 ... 127 | 127 / gamma, clipped to -128 ... 127 |
| norm | layer norm | RMS norm |

What the paper leaves open: it writes no rounding, but means int8; here to the nearest whole number, and e is one step of that grid.
Ternary weights (arXiv 2402.17764, equations 1 to 3): W~ = RoundClip(W / beta, -1, 1), beta = max(mean |W|, 1e-5), in both variants.
"""

import jax
import jax.numpy as jnp

from paxlike.config import QuantConfig

Array = jax.Array
Axes = tuple[str, ...]

SMALLEST = 1e-5
"""The least beta of ternary weights and the least gamma of activations, as in the published code."""


UNROLLED = 4
"""Products of tiles that are written out; more are a loop, which is compiled once."""


def quantize_weight(w: Array, tiles: tuple[int, int], quant: QuantConfig, axes: Axes = ()) -> tuple[Array, Array]:
    """A matrix [inputs, outputs] -> (int8 of -1, 0, +1 in its shape, float32 beta [input tiles, output tiles])."""
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
    """W~ beta, [inputs, outputs]."""
    (rows, columns), (inputs, outputs) = beta.shape, signs.shape
    w4 = signs.astype(dtype).reshape(rows, inputs // rows, columns, outputs // columns)
    return (w4 * beta.astype(dtype)[:, None, :, None]).reshape(signs.shape)


def quantize_activation(
    x: Array, groups: int, quant: QuantConfig, axes: Axes = (), batch_axes: Axes = (), *, shifted: bool = False
) -> tuple[Array, Array]:
    """[B, T, inputs] -> (int8 in its shape, float32 scale [B, T, groups], or [1, 1, groups] where it is of the whole tensor).

    x~ times its group's scale is about x (about x - eta where shifted). axes: over which a group is cut; batch_axes: over which tokens are.
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
    """float32 y [B, T, outputs] = the sum over input tiles of (x~ W~) scale beta.

    integer: by int8 products summed in int32; otherwise by floats, which hold the same whole numbers exactly (a sum of fewer than
    2^17 products of at most 127 is below 2^24), so that both give the same bits.
    """
    tiles, groups = beta.shape[0], x_scale.shape[-1]
    inputs, outputs = signs.shape
    rows = inputs // tiles

    def add(total: Array | float, tile: int | Array) -> tuple[Array, None]:
        # A slice of everything is the array itself to the compiler, so that one tile is one product.
        sums = _whole_numbers(
            jax.lax.dynamic_slice_in_dim(x_ints, tile * rows, rows, 2),
            jax.lax.dynamic_slice_in_dim(signs, tile * rows, rows, 0),
            integer,
        )
        scale = jax.lax.dynamic_slice_in_dim(x_scale, tile * groups // tiles, 1, 2)
        return total + sums * (scale * jnp.repeat(beta[tile], outputs // beta.shape[1])[None, None]), None

    if tiles == 1:
        return add(0.0, 0)[0]
    zeros = jnp.zeros((*x_ints.shape[:2], outputs), jnp.float32)
    return jax.lax.scan(add, zeros, jnp.arange(tiles), unroll=min(tiles, UNROLLED))[0]


def _whole_numbers(x: Array, w: Array, integer: bool) -> Array:
    contracted = (((2,), (0,)), ((), ()))
    if integer:
        return jax.lax.dot_general(x, w, contracted, preferred_element_type=jnp.int32).astype(jnp.float32)
    # bfloat16 holds the whole numbers up to 256; XLA's CPU has no fast product of it.
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jax.lax.dot_general(x.astype(dtype), w.astype(dtype), contracted, preferred_element_type=jnp.float32)


# ---- SubLN -------------------------------------------------------------------------------------------------------------


def sub_norm(x: Array, groups: int, quant: QuantConfig, epsilon: float, axes: Axes = ()) -> tuple[Array, Array]:
    """Layer or RMS norm of every group of [B, T, inputs], without a scale (equation 16), in float32.

    Returns (the normed x, 1 / deviation [B, T, groups, 1]).
    """
    x4 = _grouped(x, groups)
    if quant.variant == "paper":
        x4 = x4 - _mean(x4, (3,), axes)
    inverse = jax.lax.rsqrt(_mean(jnp.square(x4), (3,), axes) + epsilon)
    return (x4 * inverse).reshape(x.shape), inverse


def sub_norm_backward(dy: Array, normed: Array, inverse: Array, quant: QuantConfig, axes: Axes = ()) -> Array:
    """The gradient of x, float32, from that of the normed x. Linear in dy."""
    groups = inverse.shape[2]
    dy4, normed4 = _grouped(dy, groups), _grouped(normed, groups)
    dx4 = dy4 - normed4 * _mean(dy4 * normed4, (3,), axes)
    if quant.variant == "paper":
        dx4 = dx4 - _mean(dy4, (3,), axes)
    return (dx4 * inverse).reshape(dy.shape)


def _grouped(x: Array, groups: int) -> Array:
    return x.astype(jnp.float32).reshape(*x.shape[:2], groups, -1)


def _mean(x: Array, over: tuple[int, ...], axes: Axes) -> Array:
    mean = x.mean(over, keepdims=True)
    return jax.lax.pmean(mean, axes) if axes else mean


def _max(x: Array, over: tuple[int, ...], axes: Axes) -> Array:
    largest = x.max(over, keepdims=True)
    return jax.lax.pmax(largest, axes) if axes else largest
