"""Declaring a parameter: its letters give shape, sharding, fan-in and, with the attribute's name, its checkpoint name."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from paxlike.config import ModelConfig, PrecisionConfig, QuantConfig
from paxlike.parallel.axes import sizes
from paxlike.parallel.mesh import axis_sizes, weight_spec
from paxlike.quant.tiles import check_mesh, tiles


@dataclasses.dataclass(frozen=True)
class Numerics:
    """Number formats and the attention implementation, settled for the platform that the program runs on."""

    compute: str
    params: str
    gradients: str
    attention: str
    integer: bool = False
    """Whether quantized weights are multiplied by int8 products: where there is a unit for them. The results are the same."""

    @classmethod
    def of(cls, model: ModelConfig, precision: PrecisionConfig, platform: str) -> "Numerics":
        """`platform` is `cpu`, `gpu` or `tpu`."""
        compute = precision.compute
        if compute == "auto":
            compute = "bfloat16" if platform != "cpu" or _cpu_multiplies_bfloat16() else "float32"
        attention = model.attention
        if attention == "auto":
            attention = {"tpu": "splash", "gpu": "cudnn"}.get(platform, "blocked")
        integer = model.quant.active and (platform != "cpu" or _cpu_multiplies_int8())
        return cls(compute, precision.params, precision.gradients, attention, integer)


def _cpu_multiplies_int8() -> bool:
    """Whether this processor has AMX or VNNI instructions, as Linux tells."""
    return not {"amx_int8", "avx512_vnni", "avx_vnni"}.isdisjoint(_cpu_flags())


def _cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it, and this jaxlib's matmuls use them well: by docs/performance.md since 0.12."""
    return jax.__version_info__ >= (0, 12) and not {"amx_bf16", "avx512_bf16"}.isdisjoint(_cpu_flags())


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        return frozenset(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return frozenset()


def fan_in(dims: str, size: dict[str, int]) -> int:
    """Inputs summed by one output: D where it comes first (D -> others), everything before D where it comes last."""
    return size["D"] if dims[0] == "D" else math.prod(size[d] for d in dims[:-1])


def weight(dims: str, config: ModelConfig, rngs: nnx.Rngs, dtype: str, quant: QuantConfig | None = None) -> nnx.Param:
    """A kernel drawn from N(0, 1/sqrt(fan_in)) (PaLM, arXiv 2204.02311, section 5), born sharded.

    With an active `quant` these are the latent weights of a quantized kernel. Raises ConfigError where its letters are none that can
    be quantized, or where its tiles do not fit the kernel or the mesh.
    """
    if quant and quant.active:
        tiles(dims, _shape(dims, config), quant)
        check_mesh(quant, axis_sizes())
    return _normal(dims, config, rngs, dtype, fan_in(dims, sizes(config)) ** -0.5)


def embedding(dims: str, config: ModelConfig, rngs: nnx.Rngs, dtype: str) -> nnx.Param:
    """An embedding table drawn from N(0, 1) (PaLM, section 5)."""
    return _normal(dims, config, rngs, dtype, 1.0)


def scale(dims: str, config: ModelConfig, dtype: str) -> nnx.Param:
    """A norm's scale, ones."""
    shape = _shape(dims, config)
    return nnx.Param(jnp.ones(shape, dtype, out_sharding=weight_spec(dims, shape)))


def _shape(dims: str, config: ModelConfig) -> tuple[int, ...]:
    size = sizes(config)
    return tuple(size[d] for d in dims)


def _normal(dims: str, config: ModelConfig, rngs: nnx.Rngs, dtype: str, deviation: float) -> nnx.Param:
    shape = _shape(dims, config)
    draw = jax.random.normal(rngs.params(), shape, jnp.float32, out_sharding=weight_spec(dims, shape))
    return nnx.Param((draw * deviation).astype(dtype))
