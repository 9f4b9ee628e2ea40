"""An activation times a weight: `einsum("BTD,DF->BTF", y_BTD, w.wup_DF)`, for every kind of weight.

A weight in a block is not a bare array but an object with a method `einsum` (see `Multiplier`), so
that a branch does not know whether it is stored sharded, quantized, adapted or frozen. This file
has the plain kind, `Kernel`; `nn/bitlinear.py` has the quantized kind.
"""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from paxlike.nn.collectives import Stored, own_part, scatter_gradient, total
from paxlike.nn.differentiated import differentiated
from paxlike.nn.ring import Partial, RingSteps, multiply_gathered, uses_ring
from paxlike.nn.stream import Stream
from paxlike.parallel import rules

Array = jax.Array


class Multiplier(Protocol):
    """A weight that can be multiplied with."""

    def einsum(self, equation: str, x: Array | Stream) -> Array | Partial:
        """See `einsum`."""
        ...

    def read(self, x: Array | Stream) -> Array | Stream:
        """What the weight multiplies, given x: x itself, or its norm (`nn/bitlinear.py`)."""
        ...


def einsum(equation: str, x: Array | Stream, weight: Multiplier) -> Any:
    """x times a weight, on this device's arrays, in x's dtype.

    x: a `Stream` where the equation contracts D (the result has this device's heads or columns);
    otherwise this device's heads or columns (the result is this device's term of a sum over
    `model`, which `scatter_stream` takes: an array, or a `Partial` in pieces).
    """
    return weight.einsum(equation, x)


class Kernel:
    """A weight as it is stored: a shard, which is gathered over `data` where it is used."""

    def __init__(
        self,
        shard: Array,
        places: tuple[rules.Axis, ...],
        gradients: str,
        ring: RingSteps | None = None,
        gathered: Array | None = None,
    ):
        """places: of the stored weight's dimensions. gradients: the dtype its gradient is summed
        in. ring: the block's, if the stream is gathered and scattered in ring steps. gathered: see
        `Stored`.
        """
        self.shard, self.places, self.gradients, self.ring = shard, places, gradients, ring
        self._stored = Stored(shard, gathered)

    def einsum(self, equation: str, x: Array | Stream) -> Array | Partial:
        static = equation, self.places, self.gradients
        if not isinstance(x, Stream):
            if self.ring and uses_ring(True, x) and equation.endswith("->BTD"):
                return self.ring.multiply(static, x, self._stored)
            return _multiply(static, x, self._stored)
        ring = uses_ring(self.ring is not None, x.shard_BTD)
        if not sums_over_model(self.places):
            if ring:
                return multiply_gathered(static, x.pieces_BTD, self._stored)
            return _multiply(static, x.whole_BTD, self._stored)
        if ring:
            return total(_multiply(static, x.shard_BTD, self._stored), "model")
        # Of the gathered stream, not of the shard it came from: the gradient then joins the one
        # reduce-scatter of the stream. As a separate term, TPU compilers turn that into an
        # all-reduce.
        return total(_multiply(static, own_part(x.whole_BTD, "model", 2), self._stored), "model")

    def read(self, x: Array | Stream) -> Array | Stream:
        return x


def sums_over_model(places: tuple[rules.Axis, ...]) -> bool:
    """Whether a weight's first dimension, D, stays sharded over `model` in use.

    Its product is then a sum over `model`, of the stream's own shard (see `parallel/rules.py`).
    """
    used = rules.gathered(places)
    return used[0] == "model" and all(place is None for place in used[1:])


# A custom gradient, for three reasons: the weight's gradient is computed and summed over `data` in
# the dtype of gradients; the backward pass gathers the weight again, so that no gathered weight is
# kept (ZeRO stage 3, arXiv 1910.02054); and CPUs get their operands in the better order. A frozen
# weight has no gradient.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply(static: tuple, x: Array, weight: Stored) -> Array:
    equation, places, _ = static
    return jnp.einsum(equation, x, weight.in_use(places, x.dtype))


def _forward(static, x, weight):
    x, weight = differentiated(x), differentiated(weight)
    return _multiply(static, x.value, weight.value), (x.kept_for(weight), weight.value)


def _backward(static, kept, dy):
    equation, places, gradients = static
    x, weight = kept
    inputs, out = equation.split("->")
    x_letters, w_letters = inputs.split(",")
    dw = None
    if x is not None:
        dw = _weight_gradient(x_letters, w_letters, out, x, dy, gradients)
        dw = scatter_gradient(dw, places, weight.shard.dtype)
    used = weight.in_use(places, dy.dtype)
    dx = jnp.einsum(f"{out},{w_letters}->{x_letters}", dy, used)
    return dx, Stored(dw)


_multiply.defvjp(_forward, _backward, symbolic_zeros=True)


def _weight_gradient(
    x_letters: str, w_letters: str, out: str, x: Array, dy: Array, dtype: str
) -> Array:
    """x^T dy, summed over batch and time."""
    on_cpu = jax.sharding.get_abstract_mesh().abstract_device.platform == "cpu"
    if x.size <= dy.size or not on_cpu:
        equation = f"{x_letters},{out}->{w_letters}"
        return jnp.einsum(equation, x, dy, preferred_element_type=dtype)
    # XLA's CPU backend writes out the first operand of such a product transposed, at a tenth of the
    # speed of memory: the smaller one goes first, and the result is transposed. The barrier keeps
    # XLA from undoing that; it has no bfloat16 product for the result either.
    turned = "".join(sorted(w_letters, key=lambda letter: letter in x_letters))
    dw = jnp.einsum(f"{out},{x_letters}->{turned}", dy, x, preferred_element_type=dtype)
    return jax.lax.optimization_barrier(dw).transpose([turned.index(d) for d in w_letters])
