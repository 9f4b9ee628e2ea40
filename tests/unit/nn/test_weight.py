"""Fan-in by letters, the form of a weight in use, and the number formats of each platform.

Initial values are tested in tests/unit/models/test_decoder.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of, model_config, numerics_of
from jax.sharding import NamedSharding

from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.stack import groups
from paxlike.config import ConfigError, ModelConfig, PrecisionConfig, QuantConfig
from paxlike.nn import numerics
from paxlike.nn.bitlinear import BitLinear
from paxlike.nn.collectives import on_devices, specs_of
from paxlike.nn.numerics import Numerics
from paxlike.nn.weight import check_quantized, fan_in, in_use, with_summed_gradient
from paxlike.parallel.mesh import weight_spec

SIZES = {"D": 2, "N": 3, "H": 5, "K": 7, "F": 11, "V": 13}


@pytest.mark.parametrize(
    ("dims", "inputs"), [("DNH", 2), ("DKH", 2), ("DF", 2), ("DV", 2), ("NHD", 3 * 5), ("FD", 11)]
)
def test_fan_in_is_the_number_of_inputs_of_one_output(dims, inputs):
    assert fan_in(dims, SIZES) == inputs


@pytest.mark.parametrize(
    ("platform", "compute", "attention"),
    [("cpu", "float32", "blocked"), ("gpu", "bfloat16", "cudnn"), ("tpu", "bfloat16", "splash")],
)
def test_auto_depends_on_the_platform(platform, compute, attention):
    on_tpu = platform == "tpu"
    formats = compute, "float32", "float32"
    expected = Numerics(*formats, attention, ring=on_tpu, ahead=on_tpu)
    assert Numerics.of(ModelConfig(), PrecisionConfig(), platform) == expected


def test_softcaps_run_without_cudnn():
    for platform, kernel in (("gpu", "blocked"), ("tpu", "splash")):
        found = Numerics.of(ModelConfig(attention_softcap=50.0), PrecisionConfig(), platform)
        assert found.attention == kernel


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_explicit_settings_are_kept(platform):
    precision = PrecisionConfig("float32", "bfloat16", "bfloat16")
    found = Numerics.of(ModelConfig(attention="xla"), precision, platform)
    on_tpu = platform == "tpu"
    expected = Numerics("float32", "bfloat16", "bfloat16", "xla", ring=on_tpu, ahead=on_tpu)
    assert found == expected


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
def test_int8_products_where_the_hardware_has_them(platform, flags, integer, monkeypatch):
    """In quantized models only. It affects the speed, not the results."""
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
def test_a_cpu_computes_in_its_fastest_dtype(version, flags, compute, monkeypatch):
    cpu(monkeypatch, flags)
    monkeypatch.setattr(jax, "__version_info__", version)
    assert Numerics.of(ModelConfig(), PrecisionConfig(), "cpu").compute == compute
    assert Numerics.of(ModelConfig(), PrecisionConfig("float32"), "cpu").compute == "float32"


def cpu(monkeypatch, flags):
    """Pretends that the processor has these features."""
    monkeypatch.setattr(numerics, "_cpu_flags", lambda: frozenset(flags.split()))


# ---- weights in use ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [("head_DV", "head and norms stay in high precision"), ("wup_DF", "mesh.model 2 does")],
)
def test_a_weight_that_cannot_be_quantized_raises(name, message):
    """The head because of its letters; another weight because the mesh would split its groups."""
    quant = QuantConfig(weights="bitnet", groups=3 if name == "wup_DF" else 1)
    config = model_config(quant=quant, heads=3, d_ff=48, d_model=48).model
    with jax.set_mesh(mesh_of(model=2)), pytest.raises(ConfigError, match=message):
        check_quantized(WeightSpec(name, "part"), config)


def test_only_kernels_of_blocks_are_quantized():
    """Biases and scales are used as they are."""
    config = model_config(
        quant=QuantConfig(weights="bitnet"), attention_bias="qkvo", qk_norm="head", head="untied"
    )
    model, n = config.model, numerics_of(config)
    found = {}
    with jax.set_mesh(mesh_of()):
        ((_, block, _),) = groups(model)
        for spec in block.weights(model):
            array = jnp.zeros(spec.shape(model))
            weight = in_use(spec, array, model, n)
            found[spec.name] = None if weight is array else type(weight)
    kernels = ("wq_DNH", "wk_DKH", "wv_DKH", "wo_NHD", "wgate_DF", "wup_DF", "wdown_FD")
    vectors = ("bq_NH", "bk_KH", "bv_KH", "bo_D", "q_scale_H", "k_scale_H")
    assert found == dict.fromkeys(kernels, BitLinear) | dict.fromkeys(vectors)


@pytest.mark.parametrize("gradients", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 1, 8)], ids=["2x2x2", "1x1x8"])
def test_gradients_are_summed_over_copies(sizes, gradients):
    """Each device's own gradient is 1 + its number / 1024, so that a sum shows which devices it is
    over: those that hold a copy of the shard. The sums of kernels alone are in `gradients`."""
    config = model_config(kv_heads=2, attention_bias="qkvo", qk_norm="head")
    model, n = config.model, Numerics("float32", "float32", gradients, "reference")
    ((_, block, _),) = groups(model)
    weights = {weight.name: weight for weight in block.weights(model)}
    with jax.set_mesh(mesh_of(*sizes)):
        mesh = jax.sharding.get_mesh()
        params = {
            name: jax.device_put(
                np.zeros(weight.shape(model), np.float32),
                NamedSharding(mesh, weight_spec(weight.letters, weight.shape(model))),
            )
            for name, weight in weights.items()
        }

        def device(params):
            index = jax.lax.axis_index(mesh.axis_names)

            def loss(params):
                found = [with_summed_gradient(weights[d], w, model, n) for d, w in params.items()]
                return sum(w.sum() for w in found) * (1 + index / 1024)

            return jax.grad(loss)(params)

        found = jax.jit(on_devices(device, (specs_of(params),), specs_of(params)))(params)
    for name, gradient in found.items():
        rounded = weights[name].kind == "kernel" and gradients == "bfloat16"
        shards, values = gradient.addressable_shards, np.asarray(gradient)
        for shard in shards:
            copies = [other.device.id for other in shards if other.index == shard.index]
            expected = sum(1 + number / 1024 for number in copies)
            tolerance = expected * 2**-7 if rounded else 1e-6
            np.testing.assert_allclose(shard.data, expected, rtol=0, atol=tolerance, err_msg=name)
        assert (values == values.astype(jnp.bfloat16)).all() == rounded, name
