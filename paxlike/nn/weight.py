"""Weights from their declarations: initial values, and the form in which a block multiplies
them.
"""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from paxlike.architecture.branch import WeightSpec
from paxlike.config import ModelConfig
from paxlike.nn.adapted import Adapted, AdaptedKernel
from paxlike.nn.bitlinear import BitLinear, Settings
from paxlike.nn.collectives import Stored, sum_gradient_over_copies
from paxlike.nn.einsum import Kernel, Multiplier
from paxlike.nn.numerics import Numerics
from paxlike.nn.quantized import QuantizedWeight, layout_of
from paxlike.nn.ring import RingSteps
from paxlike.nn.rows import RowFactors, RowKernel
from paxlike.parallel import rules
from paxlike.parallel.axes import sizes
from paxlike.parallel.mesh import axis_sizes, weight_spec
from paxlike.quant.tiles import check_mesh, tiles

Array = jax.Array


def fan_in(letters: str, size: dict[str, int]) -> int:
    """Inputs summed by one output: D where it is first (D -> others), else all but the last.

    Every expert has its own inputs.
    """
    letters = letters.removeprefix("E")
    if letters[0] == "D":
        return size["D"]
    # A vector is summed up by a single output.
    return math.prod(size[letter] for letter in letters[:-1] or letters)


def initial(spec: WeightSpec, config: ModelConfig, keys: Iterator[Array], dtype: str) -> Array:
    """A weight's initial value, created sharded.

    Kernels are drawn from N(0, 1/sqrt(fan-in)), embeddings from N(0, 1); scales are ones (zeros
    with `model.norm_offset`), biases zeros (PaLM, arXiv 2204.02311, section 5).
    """
    shape = spec.shape(config)
    sharding = weight_spec(spec.letters, shape)
    if spec.kind in ("scale", "bias", "selection"):
        ones = spec.kind == "scale" and not config.norm_offset
        return jnp.full(shape, ones, dtype, out_sharding=sharding)
    deviation = 1.0 if spec.kind == "embedding" else fan_in(spec.letters, sizes(config)) ** -0.5
    draw = jax.random.normal(next(keys), shape, jnp.float32, out_sharding=sharding)
    return (draw * deviation).astype(dtype)


def check_quantized(spec: WeightSpec, config: ModelConfig) -> None:
    """Raises ConfigError if the tiles of a quantized kernel fit neither the kernel nor the mesh."""
    if config.quant.active and spec.kind == "kernel":
        tiles(spec.letters, spec.shape(config), config.quant)
        check_mesh(config.quant, axis_sizes())


def in_use(
    spec: WeightSpec,
    value: Array | Stored | QuantizedWeight | Adapted | RowFactors,
    config: ModelConfig,
    numerics: Numerics,
    ring: RingSteps | None = None,
) -> Array | Multiplier:
    """A weight of a block in use: a `Multiplier` for a kernel, otherwise this device's shard.

    ring: of the block, if its stream is gathered and scattered in ring steps.
    """
    gathered = None
    if isinstance(value, Stored):
        value, gathered = value
    if isinstance(value, Adapted):
        base = in_use(spec, value.base, config, numerics, ring)
        assert not isinstance(base, Array)  # only kernels are adapted
        in_steps = None if config.quant.active else ring
        return AdaptedKernel(base, value, numerics.gradients, in_steps)
    if isinstance(value, RowFactors):
        base = in_use(spec, value.base, config, numerics, ring)
        assert not isinstance(base, Array)
        return RowKernel(base, value)
    places = places_of(spec, config)
    if spec.kind == "kernel" and config.quant.active:
        settings = Settings(config.quant, config.norm_epsilon, numerics.integer, numerics.gradients)
        layout = layout_of(spec.letters, spec.shape(config), config.quant)
        return BitLinear(
            value, layout, settings, config.quant.nonnegative and spec.feeds_activation
        )
    assert not isinstance(value, QuantizedWeight)
    if spec.kind not in ("kernel", "expert", "router"):
        return value
    return Kernel(value, places, numerics.gradients, ring, gathered)


def with_summed_gradient(
    spec: WeightSpec, value: Array | Stored, config: ModelConfig, numerics: Numerics
) -> Array | Stored:
    """A weight's shard, whose gradient is summed over the devices that hold copies of it."""
    if spec.kind == "selection":
        return value  # without a gradient
    narrow = spec.kind in ("kernel", "expert", "embedding")
    how = places_of(spec, config), numerics.gradients if narrow else "float32"
    if isinstance(value, Stored):
        return value._replace(shard=sum_gradient_over_copies(value.shard, *how))
    return sum_gradient_over_copies(value, *how)


def places_of(spec: WeightSpec, config: ModelConfig) -> tuple[rules.Axis, ...]:
    """The mesh axes of a stored weight's dimensions, on the active mesh."""
    return rules.weight_spec(spec.letters, spec.shape(config), axis_sizes())
