"""Quantizing weights on the mesh: sharding of tiles, packed gathers, and weights for inference."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec as P

from paxlike.architecture.stack import groups
from paxlike.config import ModelConfig, QuantConfig
from paxlike.nn.adapted import Adapted
from paxlike.nn.collectives import Leaf, gather, gather_weight, on_devices
from paxlike.nn.numerics import Numerics
from paxlike.nn.rows import RowFactors
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
    """A quantized weight for inference, without latent weights; or its PartitionSpecs.

    If a parameter's value is a QuantizedWeight, `param[...]` returns it.
    """

    signs: Leaf
    """int8 (-1, 0, +1) in the weight's shape; replicated over `data`, sharded over `model`."""
    beta: Leaf
    """float32 [input tiles, output tiles] (`quant/tiles.py`)."""

    def __getitem__(self, _: object) -> "QuantizedWeight":
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return self.signs.shape


class Layout(NamedTuple):
    """A weight as a matrix of inputs x outputs."""

    places: tuple[rules.Axis, ...]
    """The mesh axis (or None) of each stored dimension."""
    inner: int
    """Number of input dimensions."""
    tiles: tuple[int, int]

    def matrix_axes(self, places: tuple[rules.Axis, ...]) -> tuple[rules.Axis, rules.Axis]:
        """Returns the mesh axes of the inputs and of the outputs.

        If either has several dimensions, only the first is ever sharded.
        """
        return places[0], places[self.inner]


def layout_of(letters: str, shape: tuple[int, ...], quant: QuantConfig) -> Layout:
    inner = 1 if letters[0] == "D" else len(letters) - 1
    return Layout(tuple(weight_spec(letters, shape)), inner, tiles(letters, shape, quant))


def quantized_specs(layout: Layout) -> QuantizedWeight:
    """Returns the PartitionSpecs of a QuantizedWeight's arrays.

    A scale is sharded with its tile, or replicated if every shard needs it.
    """
    places = rules.gathered(layout.places)
    beta = [
        place if parts % rules.shards(place, axis_sizes()) == 0 else None
        for place, parts in zip(layout.matrix_axes(places), layout.tiles, strict=True)
    ]
    return QuantizedWeight(P(*places), P(*beta))


def _matrix(w: Array, layout: Layout) -> Array:
    return w.reshape(math.prod(w.shape[: layout.inner]), -1)


def over_model(quant: QuantConfig) -> tuple[str, ...]:
    """Returns the mesh axes that statistics along heads and feed-forward columns are reduced over.

    With groups there are none.
    """
    return ("model",) if quant.groups == 1 and axis_sizes()["model"] > 1 else ()


def quantized(
    w: Array | QuantizedWeight, layout: Layout, quant: QuantConfig, dtype: jax.typing.DTypeLike
) -> tuple[Array, Array]:
    """Quantizes a device's shard. Returns the int8 matrix and its beta, gathered over `data`."""
    mesh = axis_sizes()
    if isinstance(w, QuantizedWeight):
        return _matrix(w.signs, layout), w.beta
    gathers_packed = quant.data_tiles > 1
    places = layout.places if gathers_packed else rules.gathered(layout.places)
    if not gathers_packed:
        w = gather_weight(w, layout.places, dtype)
    inputs, outputs = (
        local_tiles(n, place, mesh)
        for n, place in zip(layout.tiles, layout.matrix_axes(places), strict=True)
    )
    signs, beta = quantize_weight(_matrix(w, layout), (inputs, outputs), quant, over_model(quant))
    if gathers_packed and mesh["data"] > 1:
        signs, beta = _gather_packed(signs, beta, layout, quant.bits)
    return signs, beta


def _gather_packed(signs: Array, beta: Array, layout: Layout, bits: int) -> tuple[Array, Array]:
    inputs, outputs = signs.shape
    _, out_place = layout.matrix_axes(layout.places)
    packed = pack(signs, bits)
    if out_place == "data":
        packed = gather(packed, "data", 1)
        return unpack(packed, bits, inputs), gather(beta, "data", 1)
    packed = jax.lax.all_gather(packed, "data", axis=0)
    return unpack(packed, bits, inputs).reshape(-1, outputs), gather(beta, "data", 0)


# ---- inference -----------------------------------------------------------------------------------


def quantize_params(config: ModelConfig, numerics: Numerics, params: dict) -> dict:
    """Quantizes the kernels of the blocks for inference, on the active mesh.

    The values are the same as in training. Weights that are already quantized are unchanged.
    """
    check_mesh(config.quant, axis_sizes())
    quantized_groups = {}
    for group, block, _ in groups(config):
        kernels = tuple(spec.name for spec in block.weights(config) if spec.kind == "kernel")
        quantized_groups[group] = _quantize_block(config, numerics, kernels, params[group])
    return {**params, **quantized_groups}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _quantize_block(
    config: ModelConfig, numerics: Numerics, kernels: tuple[str, ...], stacks: dict
) -> dict:
    def one(name: str, stack: Any) -> Any:
        if isinstance(stack, QuantizedWeight) or name not in kernels:
            return stack
        if isinstance(stack, Adapted | RowFactors):
            return dataclasses.replace(stack, base=one(name, stack.base))
        letters = letters_of(name)
        layout = layout_of(letters, stack.shape[1:], config.quant)
        specs = quantized_specs(layout)
        out = QuantizedWeight(P(None, *specs.signs), P(None, *specs.beta))

        def device(stack):
            def layer(w):
                signs, beta = quantized(w, layout, config.quant, numerics.compute)
                shape = [*w.shape]
                shape[letters.index("D")] = -1  # gathered over `data`
                return QuantizedWeight(signs.reshape(shape), beta)

            return jax.lax.map(layer, stack)

        return on_devices(device, (P(None, *layout.places),), out)(stack)

    return {name: one(name, stack) for name, stack in stacks.items()}
