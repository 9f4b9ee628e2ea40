"""Weights on their way from latent numbers to +1 and -1: where tiles lie, what is gathered, and what inference keeps of them."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paxlike.config import ModelConfig, QuantConfig
from paxlike.nn.einsum import gather, gather_weight, on_devices
from paxlike.nn.weight import Numerics
from paxlike.parallel import rules
from paxlike.parallel.axes import letters_of
from paxlike.parallel.mesh import axis_sizes, weight_spec
from paxlike.quant.bitnet import quantize_weight
from paxlike.quant.packing import pack, unpack
from paxlike.quant.tiles import check_mesh, local_tiles, tiles

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """A weight for inference: no latent numbers, no statistics to take. Where a parameter's value is one, `param[...]` is it."""

    signs: Array
    """int8, -1, 0 and +1, in the weight's shape; whole over `data`, cut over `model` as the weight is."""
    beta: Array
    """float32 [input tiles, output tiles] (`quant/tiles.py`)."""

    def __getitem__(self, _: object) -> "QuantizedWeight":
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return self.signs.shape


class Layout(NamedTuple):
    """A weight as a matrix of inputs x outputs."""

    places: tuple[rules.Axis, ...]
    """Of its dimensions, as stored."""
    inner: int
    """Dimensions that are inputs."""
    tiles: tuple[int, int]

    def cut(self, places: tuple[rules.Axis, ...]) -> tuple[rules.Axis, rules.Axis]:
        """Places of the inputs and of the outputs; of several dimensions, only the first is ever cut."""
        return places[0], places[self.inner]


def layout_of(letters: str, shape: tuple[int, ...], quant: QuantConfig) -> Layout:
    inner = 1 if letters[0] == "D" else len(letters) - 1
    return Layout(tuple(weight_spec(letters, shape)), inner, tiles(letters, shape, quant))


def quantized_specs(layout: Layout) -> QuantizedWeight:
    """Where a QuantizedWeight's arrays lie: a scale where its tile is, one that all need everywhere."""
    places = rules.gathered(layout.places)
    beta = [
        place if parts % rules.shards(place, axis_sizes()) == 0 else None
        for place, parts in zip(layout.cut(places), layout.tiles, strict=True)
    ]
    return QuantizedWeight(P(*places), P(*beta))


def _matrix(w: Array, layout: Layout) -> Array:
    return w.reshape(math.prod(w.shape[: layout.inner]), -1)


def over_model(quant: QuantConfig) -> tuple[str, ...]:
    """The mesh axes that statistics along heads and feed-forward columns are taken over: none where there are groups."""
    return ("model",) if quant.groups == 1 and axis_sizes()["model"] > 1 else ()


def quantized(w: Array | QuantizedWeight, layout: Layout, quant: QuantConfig, dtype: jnp.dtype) -> tuple[Array, Array]:
    """A device's shard -> (int8 matrix, beta of its tiles), whole over `data`."""
    mesh = axis_sizes()
    if isinstance(w, QuantizedWeight):
        return _matrix(w.signs, layout), w.beta
    sent_packed = quant.data_tiles > 1
    places = layout.places if sent_packed else rules.gathered(layout.places)
    if not sent_packed:
        w = gather_weight(w, layout.places, dtype)
    parts = tuple(local_tiles(n, place, mesh) for n, place in zip(layout.tiles, layout.cut(places), strict=True))
    signs, beta = quantize_weight(_matrix(w, layout), parts, quant, over_model(quant))
    if sent_packed and mesh["data"] > 1:
        signs, beta = _gather_packed(signs, beta, layout, quant.bits)
    return signs, beta


def _gather_packed(signs: Array, beta: Array, layout: Layout, bits: int) -> tuple[Array, Array]:
    inputs, outputs = signs.shape
    _, out_place = layout.cut(layout.places)
    packed = pack(signs, bits)
    if out_place == "data":
        packed = gather(packed, "data", 1)
        return unpack(packed, bits, inputs), gather(beta, "data", 1)
    packed = jax.lax.all_gather(packed, "data", axis=0)
    return unpack(packed, bits, inputs).reshape(-1, outputs), gather(beta, "data", 0)


# ---- inference -----------------------------------------------------------------------------------------------------------


def quantize_params(config: ModelConfig, numerics: Numerics, params: dict) -> dict:
    """Parameters for inference: the quantized weights once and for all, on the mesh in force, with the numbers that training uses.

    Those that are QuantizedWeights stay as they are.
    """
    check_mesh(config.quant, axis_sizes())
    return {**params, "blocks": _quantize_blocks(config, numerics, params["blocks"])}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _quantize_blocks(config: ModelConfig, numerics: Numerics, blocks: dict) -> dict:
    def one(name: str, stack: Array | QuantizedWeight) -> Array | QuantizedWeight:
        if isinstance(stack, QuantizedWeight):
            return stack
        letters = letters_of(name)
        layout = layout_of(letters, stack.shape[1:], config.quant)
        out = jax.tree.map(lambda place: P(None, *place), quantized_specs(layout), is_leaf=lambda x: isinstance(x, P))

        def device(stack):
            def layer(w):
                signs, beta = quantized(w, layout, config.quant, numerics.compute)
                shape = [*w.shape]
                shape[letters.index("D")] = -1  # what was gathered over `data`
                return QuantizedWeight(signs.reshape(shape), beta)

            return jax.lax.map(layer, stack)

        return on_devices(device, (P(None, *layout.places),), out)(stack)

    return {name: one(name, stack) for name, stack in blocks.items()}
