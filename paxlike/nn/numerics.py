"""Number formats and kernels, resolved for the platform that a program runs on."""

import dataclasses
import functools
from pathlib import Path

import jax

from paxlike.config import Config, ModelConfig, PrecisionConfig


@dataclasses.dataclass(frozen=True)
class Numerics:
    """Number formats and the attention implementation, with `auto` resolved for one platform."""

    compute: str
    params: str
    gradients: str
    attention: str
    ring: bool = False
    """Whether the stream is gathered and scattered in ring steps (`nn/ring.py`)."""
    ahead: bool = False
    """Whether a layer's first weights are gathered one layer ahead (`nn/layer_loop.py`)."""
    integer: bool = False
    """Whether quantized weights are multiplied in int8, if the hardware supports it. Results are
    equal.
    """
    experts: str = "ragged"
    """How experts are multiplied: by an implementation of `nn/grouped.py`, or `dense`: all experts
    for every token, which tests compare with."""
    transport: str = "gather"
    """How tokens reach the experts of other devices (`nn/expert_transport.py`)."""

    @classmethod
    def of(cls, model: ModelConfig, precision: PrecisionConfig, platform: str) -> "Numerics":
        """Resolves the settings for `platform`: `cpu`, `gpu` or `tpu`."""
        compute = precision.compute
        if compute == "auto":
            compute = "bfloat16" if platform != "cpu" or _cpu_multiplies_bfloat16() else "float32"
        attention: str = model.attention
        if attention == "auto":
            # cuDNN has no softcap.
            on_gpu = "blocked" if model.attention_softcap else "cudnn"
            attention = {"tpu": "splash", "gpu": on_gpu}.get(platform, "blocked")
        integer = model.quant.active and (platform != "cpu" or _cpu_multiplies_int8())
        ring = ahead = platform == "tpu"
        experts = "ragged"
        if model.experts.active:
            experts = "tpu" if platform == "tpu" else "blocks"
        formats = compute, precision.params, precision.gradients
        return cls(*formats, attention, ring, ahead, integer, experts)

    @classmethod
    def of_run(cls, config: Config, platform: str) -> "Numerics":
        """`of` a run, whose adapter may need an attention kernel of its own."""
        model = config.model
        if config.adapt.kind == "prefix" and model.attention == "auto":
            model = dataclasses.replace(model, attention="blocked")
        numerics = cls.of(model, config.precision, platform)
        return dataclasses.replace(numerics, transport=config.mesh.expert_transport)


def _cpu_multiplies_int8() -> bool:
    """Whether this processor has AMX or VNNI instructions, according to Linux."""
    return not {"amx_int8", "avx512_vnni", "avx_vnni"}.isdisjoint(_cpu_flags())


def _cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has bfloat16 instructions and this jaxlib uses them efficiently.

    jaxlib does since 0.12 (docs/performance.md).
    """
    return jax.__version_info__ >= (0, 12) and not {"amx_bf16", "avx512_bf16"}.isdisjoint(
        _cpu_flags()
    )


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        return frozenset(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return frozenset()
