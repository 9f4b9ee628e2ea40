"""Fan-in by letters, and the number formats of each platform. (What is drawn: test_palm.)"""

import jax
import pytest
from flax import nnx
from helpers import mesh_of, model_config

from paxlike.config import ConfigError, ModelConfig, PrecisionConfig, QuantConfig
from paxlike.nn import weight as module
from paxlike.nn.weight import Numerics, fan_in, weight

SIZES = {"D": 2, "N": 3, "H": 5, "K": 7, "F": 11, "V": 13}


@pytest.mark.parametrize(("dims", "inputs"), [("DNH", 2), ("DKH", 2), ("DF", 2), ("DV", 2), ("NHD", 3 * 5), ("FD", 11)])
def test_fan_in_is_what_one_output_sums(dims, inputs):
    assert fan_in(dims, SIZES) == inputs


@pytest.mark.parametrize(
    ("platform", "compute", "attention"),
    [("cpu", "float32", "blocked"), ("gpu", "bfloat16", "cudnn"), ("tpu", "bfloat16", "splash")],
)
def test_auto_is_settled_by_the_platform(platform, compute, attention):
    assert Numerics.of(ModelConfig(), PrecisionConfig(), platform) == Numerics(compute, "float32", "float32", attention)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_what_is_said_stays(platform):
    precision = PrecisionConfig("float32", "bfloat16", "bfloat16")
    found = Numerics.of(ModelConfig(attention="xla"), precision, platform)
    assert found == Numerics("float32", "bfloat16", "bfloat16", "xla")


@pytest.mark.parametrize(
    ("platform", "flags", "integer"),
    [
        ("tpu", "", True),
        ("gpu", "", True),
        ("cpu", "flags : fpu sse4_1 avx512_vnni fma", True),
        ("cpu", "flags : fpu amx_int8", True),
        ("cpu", "flags : fpu avx2 fma", False),
    ],
)
def test_int8_products_where_there_is_a_unit_for_them(platform, flags, integer, monkeypatch):
    """Of quantized models alone, and only the speed depends on it."""
    cpu(monkeypatch, flags)
    quantized = ModelConfig(quant=QuantConfig(weights="bitnet"))
    assert Numerics.of(quantized, PrecisionConfig(), platform).integer is integer
    assert not Numerics.of(ModelConfig(), PrecisionConfig(), platform).integer


@pytest.mark.parametrize(
    ("version", "flags", "compute"),
    [
        ((0, 12, 0), "flags : fpu avx512f avx512_bf16", "bfloat16"),
        ((0, 13, 1), "flags : fpu amx_bf16", "bfloat16"),
        ((0, 12, 0), "flags : fpu avx512f avx512_vnni", "float32"),
        ((0, 11, 9), "flags : fpu amx_bf16 avx512_bf16", "float32"),
    ],
)
def test_a_cpu_computes_in_what_is_fastest_there(version, flags, compute, monkeypatch):
    cpu(monkeypatch, flags)
    monkeypatch.setattr(jax, "__version_info__", version)
    assert Numerics.of(ModelConfig(), PrecisionConfig(), "cpu").compute == compute
    assert Numerics.of(ModelConfig(), PrecisionConfig("float32"), "cpu").compute == "float32"


def cpu(monkeypatch, flags):
    """A machine of another processor."""
    monkeypatch.setattr(module, "_cpu_flags", lambda: frozenset(flags.split()))


@pytest.mark.parametrize(
    ("dims", "message"), [("DV", "head and norms stay in high precision"), ("DF", "mesh.model 2 does")]
)
def test_a_declaration_that_cannot_be_quantized_is_refused(dims, message):
    """The head by its letters; another weight by the mesh that would cut its groups."""
    config = model_config(
        quant=QuantConfig(weights="bitnet", groups=3 if dims == "DF" else 1), heads=3, d_ff=48, d_model=48
    ).model
    with jax.set_mesh(mesh_of(model=2)), pytest.raises(ConfigError, match=message):
        weight(dims, config, nnx.Rngs(0), "float32", config.quant)
