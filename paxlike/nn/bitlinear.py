"""A quantized weight as a block multiplies it: BitNet's BitLinear, straight through.

A device norms (SubLN), quantizes and multiplies what it has. The norm is taken after the stream's D
has been gathered, so that its statistics need no communication. Where a statistic covers more than
one device has (`model.quant.groups` 1, `statistics` tensor), it is reduced over the mesh.

Gradients come from a straight-through estimator (BitNet, arXiv 2310.11453, section 2.2): as if a
quantized weight W~ beta and a quantized activation x~ gamma / Q_b were the numbers that they stand
for, with alpha, beta, gamma and eta constant. The norm in front is differentiated as it is.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paxlike.config import QuantConfig
from paxlike.nn.collectives import own_part, scatter_gradient, total
from paxlike.nn.differentiated import differentiated
from paxlike.nn.einsum import sums_over_model
from paxlike.nn.quantized import Layout, QuantizedWeight, over_model, quantized
from paxlike.nn.stream import Stream
from paxlike.parallel import rules
from paxlike.parallel.mesh import axis_sizes
from paxlike.quant.bitnet import dequantize_weight, product, quantize_activation, sub_norm

Array = jax.Array


class Settings(NamedTuple):
    """What the quantized weights of a model share; hashable, for custom gradients."""

    quant: QuantConfig
    epsilon: float
    """Of SubLN."""
    integer: bool
    """int8 products, if the hardware has them."""
    gradients: str


class BitLinear:
    """A `Multiplier` (`nn/einsum.py`): a latent weight that is quantized where it is used, or one
    that was quantized for inference."""

    def __init__(
        self, weight: Array | QuantizedWeight, layout: Layout, settings: Settings, shifted: bool
    ):
        """shifted: the input is shifted to be nonnegative (`model.quant.nonnegative`)."""
        self.weight, self.layout, self.settings, self.shifted = weight, layout, settings, shifted

    def einsum(self, equation: str, x: Array | Stream) -> Array:
        """The product with SubLN(x), in x's dtype. SubLN and scales are of each group's inputs."""
        settings = self.settings
        if reads_stream := isinstance(x, Stream):
            array, sums = x.shard_BTD, sums_over_model(self.layout.places)
            normed, ints, scale = _stream_input(x, settings, self.shifted)
        else:
            array, sums = x, False
            normed, ints, scale = _branch_input(x, settings, self.shifted)
        if sums:
            normed, ints = own_part(normed, "model", 2), own_part(ints, "model", 2)
        static = self.layout, settings, jnp.dtype(array.dtype).name
        y = _multiply(static, normed, ints, scale, self.weight)
        outputs = self._output_shape(equation)
        if not reads_stream:
            return y.reshape(*y.shape[:2], *outputs)
        y = y.astype(array.dtype)
        y = total(y, "model") if sums else y
        return y.reshape(*y.shape[:2], *outputs)

    def read(self, x: Array | Stream) -> Array | Stream:
        """SubLN(x) before it is quantized, in x's dtype."""
        if not isinstance(x, Stream):
            return _branch_input(x, self.settings, self.shifted)[0].reshape(x.shape).astype(x.dtype)
        normed = Stream(x.shard_BTD)
        whole_BTD = _stream_input(x, self.settings, self.shifted)[0]
        normed.whole_BTD = whole_BTD.astype(x.shard_BTD.dtype)
        return normed

    def _output_shape(self, equation: str) -> tuple[int, ...]:
        """A device's sizes of the result after batch and time; D is whole, gathered over `data`."""
        shape = self.weight.shape[self.layout.inner :]
        return shape if equation.startswith("BTD") else (-1,)


def _stream_input(x: Stream, settings: Settings, shifted: bool) -> tuple[Array, Array, Array]:
    """(normed float32, int8, scale) of the gathered stream; shared by all weights that read it."""
    quant = settings.quant
    if "normed" not in x.derived:
        x.derived["normed"] = _sub_norm(x.whole_BTD, 1, settings, ())
    normed = x.derived["normed"]
    if ("ints", shifted) not in x.derived:
        constant = jax.lax.stop_gradient(normed)
        x.derived["ints", shifted] = quantize_activation(
            constant, 1, quant, batch_axes=_batch_axes(), shifted=shifted
        )
    return normed, *x.derived["ints", shifted]


def _branch_input(x: Array, settings: Settings, shifted: bool) -> tuple[Array, Array, Array]:
    """The same of a device's heads or columns."""
    quant = settings.quant
    x = x.reshape(*x.shape[:2], -1)
    groups, axes = max(1, quant.groups // axis_sizes()["model"]), over_model(quant)
    normed = _sub_norm(x, groups, settings, axes)
    constant = jax.lax.stop_gradient(normed)
    return normed, *quantize_activation(constant, groups, quant, axes, _batch_axes())


def _sub_norm(x: Array, groups: int, settings: Settings, axes: tuple[str, ...]) -> Array:
    # Its steps are computed again in the backward pass: they are float32, twice as large as x.
    norm = functools.partial(
        sub_norm, groups=groups, quant=settings.quant, epsilon=settings.epsilon, axes=axes
    )
    return jax.checkpoint(norm)(x)


def _batch_axes() -> tuple[str, ...]:
    return tuple(axis for axis in rules.BATCH_AXES if axis_sizes().get(axis, 1) > 1)


# ---- the straight-through product ----------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply(static: tuple, normed: Array, ints: Array, scale: Array, weight) -> Array:
    """float32 [B, T, outputs]: the product of the quantized input and the quantized weight.

    normed: what ints times scale stands for; only its gradient is used.
    """
    layout, settings, dtype = static
    signs, beta = quantized(weight, layout, settings.quant, dtype)
    return product(ints, scale, signs, beta, settings.integer)


def _forward(static, *inputs):
    normed, ints, scale, weight = map(differentiated, inputs)
    values = normed.value, ints.value, scale.value, weight.value
    kept = (ints.value, scale.value) if weight.needs_gradient else None
    return _multiply(static, *values), (kept, weight.value)


def _backward(static, kept, dy):
    layout, settings, dtype = static
    inputs, weight = kept
    signs, beta = quantized(weight, layout, settings.quant, dtype)
    dy = dy.astype(dtype)
    used = dequantize_weight(signs, beta, dy.dtype)
    contracted = (((2,), (1,)), ((), ()))
    dx = jax.lax.dot_general(dy, used, contracted, preferred_element_type=jnp.float32)
    if inputs is None:
        return dx, None, None, None
    ints, scale = inputs
    groups = scale.shape[-1]
    x4 = ints.reshape(*ints.shape[:2], groups, -1).astype(jnp.float32) * scale[..., None]
    x = x4.reshape(ints.shape).astype(dy.dtype)
    contracted = (((0, 1), (0, 1)), ((), ()))
    dw = jax.lax.dot_general(x, dy, contracted, preferred_element_type=settings.gradients)
    return dx, None, None, _scattered(dw, weight, layout)


def _scattered(dw: Array, weight: Array, layout: Layout) -> Array:
    """A gathered matrix's gradient -> the stored shard's, in its shape."""
    shape = list(weight.shape)
    for dim, place in enumerate(layout.places):
        shape[dim] *= rules.size_of(rules.gathered_axes(place), axis_sizes())
    return scatter_gradient(dw.reshape(shape), layout.places, weight.dtype)


_multiply.defvjp(_forward, _backward, symbolic_zeros=True)
