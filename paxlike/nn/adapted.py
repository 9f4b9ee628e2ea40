"""An adapted weight as a block multiplies it: x W + s (x A) B (LoRA, arXiv 2106.09685, section 4).

A and B are stored sharded. They are gathered once per step, before the loop over the layers
(`Adapted.whole`), and their gradients are reduced once, after it: a layer sends nothing in addition
to its base. In use A has all of D, or this device's heads or columns; B this device's heads or
columns, or all of D. So x A is whole where x is the stream, and otherwise a term of the same sum
over `model` that the base's product is.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.lora import input_letters, lora_factors
from paxlike.config import ModelConfig
from paxlike.nn import remat
from paxlike.nn.collectives import Leaf, gather, sum_gradient_over_copies
from paxlike.nn.dropout import Noise, drop
from paxlike.nn.einsum import Kernel, Multiplier
from paxlike.nn.numerics import Numerics
from paxlike.nn.ring import Partial, RingSteps, first_entry, offsets
from paxlike.nn.stream import Stream
from paxlike.nn.wrapped import Wrapped
from paxlike.parallel import rules
from paxlike.parallel.mesh import axis_sizes, weight_spec

Array = jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("base", "a", "b", "noise"),
    meta_fields=("rank", "scale", "dropout"),
)
@dataclasses.dataclass(frozen=True)
class Adapted(Wrapped):
    """A parameter with its update, in place of the parameter; or its PartitionSpecs or shapes."""

    base: Leaf
    """The frozen weight, which may be quantized."""
    a: Leaf
    b: Leaf
    noise: Noise | None
    """What dropout is drawn from; None: no dropout."""
    rank: int
    scale: float
    dropout: float

    def __getitem__(self, _: object) -> "Adapted":
        return self

    def whole(self, name: str, config: ModelConfig, numerics: Numerics, summed: bool) -> "Adapted":
        """With factors gathered over `data`, and D also over `model`."""
        specs = lora_factors(WeightSpec(name, ""), self.rank)
        a, b = (
            whole_weight(spec, factor, config, numerics, summed)
            for spec, factor in zip(specs, (self.a, self.b), strict=True)
        )
        return dataclasses.replace(self, a=a, b=b)


class AdaptedKernel:
    """A `Multiplier`: the base's product and the update's."""

    def __init__(self, base: Multiplier, adapted: Adapted, gradients: str, ring: RingSteps | None):
        self.base, self.adapted = base, adapted
        self.a, self.b = (
            Kernel(factor, (None,) * factor.ndim, gradients, ring)
            for factor in (adapted.a, adapted.b)
        )

    def einsum(self, equation: str, x: Array | Stream) -> Array | Partial:
        inputs, out = equation.split("->")
        x_letters, w_letters = inputs.split(",")
        inner = "".join(letter for letter in w_letters if letter in x_letters)
        outer = w_letters.removeprefix(inner)
        source = self.base.read(x)
        if self.adapted.noise is not None:
            source = _dropped(source, self.adapted, self.adapted.noise)
        down, up = f"{x_letters},{inner}R", f"BTR,R{outer}"
        low_BTR: Any = self.a.einsum(f"{down}->BTR", source)
        (low_BTR,) = remat.keep(remat.PROJECTION, low_BTR * self.adapted.scale)
        y: Any = self.base.einsum(equation, x)
        return y + self.b.einsum(f"{up}->{out}", low_BTR)

    def read(self, x: Array | Stream) -> Array | Stream:
        return self.base.read(x)


def _dropped(x: Array | Stream, adapted: Adapted, noise: Noise) -> Array | Stream:
    """The adapter's input, of which each device drops the same entries as any other would."""
    cut = functools.partial(drop, noise=noise, rate=adapted.dropout)
    if not isinstance(x, Stream):
        first = jax.lax.axis_index("model") if axis_sizes()["model"] > 1 else 0
        columns = x.size // (x.shape[0] * x.shape[1])
        return cut(x, first_column=first * columns)
    return _DroppedStream(x, cut)


class _DroppedStream(Stream):
    def __init__(self, stream: Stream, cut: Callable):
        super().__init__(stream.shard_BTD)
        self._stream, self._cut = stream, cut

    @functools.cached_property
    def whole_BTD(self) -> Array:
        return self._cut(self._stream.whole_BTD, first_column=0)

    @functools.cached_property
    def pieces_BTD(self) -> tuple[Array, ...]:
        pieces = zip(self._stream.pieces_BTD, offsets(), strict=True)
        return tuple(
            self._cut(piece, first_column=first_entry(offset, piece.shape[-1]))
            for piece, offset in pieces
        )


def whole_weight(
    spec: WeightSpec, shard: Leaf, config: ModelConfig, numerics: Numerics, summed: bool
) -> Array:
    """An adapter's weight, gathered over `data`, and D also over `model`. It may be a stack.

    summed: whether its gradient is summed over the devices that hold copies.
    """
    letters, shape = spec.letters, spec.shape(config)
    if shard.ndim > len(letters):
        letters, shape = f"L{letters}", (shard.shape[0], *shape)
    places = rules.weight_spec(letters, shape, axis_sizes())
    if summed:
        shard = sum_gradient_over_copies(shard, places, numerics.gradients)
    for dim, (letter, place) in enumerate(zip(letters, places, strict=True)):
        for axis in reversed(rules.axes_of(place)):
            if axis != "model" or letter == "D":
                shard = gather(shard, axis, dim)
    return shard


def update(spec: WeightSpec, a: Array, b: Array, scale: float) -> Array:
    """s A B of stacked factors in float32: what is added to the base's weight. Global arrays."""
    inner = input_letters(spec)
    shape = (*a.shape[:-1], *b.shape[2:])
    places = weight_spec(f"L{spec.letters}", shape)
    a = jax.sharding.reshard(a, P(*places[: inner + 1], None))
    b = jax.sharding.reshard(b, P(None, None, *places[inner + 1 :]))
    equation = f"L{spec.letters[:inner]}R,LR{spec.letters[inner:]}->L{spec.letters}"
    wide = (factor.astype(jnp.float32) for factor in (a, b))
    return scale * jnp.einsum(equation, *wide, precision="highest")
