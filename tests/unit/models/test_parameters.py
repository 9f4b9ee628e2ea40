"""The decoder's parameters: shapes as counted without JAX and as named; published counts."""

import dataclasses
from pathlib import Path

import jax
import pytest
from helpers import flat, mesh_of, numerics_of

from paxlike.accounting.info import as_dict
from paxlike.accounting.parameters import (
    active_parameter_count,
    parameter_count,
    stored_parameter_count,
    stored_shapes,
)
from paxlike.architecture.stack import groups
from paxlike.config import Config, ModelConfig, UserError, load
from paxlike.parallel.axes import sizes, stored_letters
from paxlike.training.state import abstract_params

CONFIG_FILES = Path(__file__).parents[3] / "configs"
CONFIGS = {file.stem: load(file) for file in sorted(CONFIG_FILES.glob("*.py"))}
PALM = {"palm_8b": 8_632_012_800, "palm_62b": 62_495_662_080, "palm_540b": 540_356_474_880}

LLAMA = {"block": "serial", "norm": "rms", "head": "untied", "head_dim": 128}
LLAMA_2_7B = ModelConfig(
    layers=32, d_model=4096, heads=32, kv_heads=32, d_ff=11_008, vocab_size=32_000, **LLAMA
)  # fmt: skip
LLAMA_3_8B = ModelConfig(
    layers=32, d_model=4096, heads=32, kv_heads=8, d_ff=14_336, vocab_size=128_256,
    rope_theta=500_000, **LLAMA,
)  # fmt: skip
PYTHIA = ModelConfig(
    layers=32, d_model=4096, heads=32, kv_heads=32, head_dim=128, d_ff=16_384, vocab_size=50_432,
    block="parallel_two_norms", norm_bias=True, feed_forward="gelu_exact", feed_forward_bias=True,
    attention_bias="qkvo", rope_fraction=0.25, head="untied",
)  # fmt: skip
MODELS = {name: config.model for name, config in CONFIGS.items()} | {
    "llama_2_7b": LLAMA_2_7B, "llama_3_8b": LLAMA_3_8B, "pythia_6.9b": PYTHIA,
}  # fmt: skip


def made(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the decoder's parameters; nothing is computed."""
    config = Config(model=model)
    with jax.set_mesh(mesh_of()):
        return {
            name: leaf.shape
            for name, leaf in flat(abstract_params(config, numerics_of(config))).items()
        }


@pytest.mark.parametrize("name", MODELS)
def test_counted_shapes_are_those_of_the_parameters(name):
    model = MODELS[name]
    counted = dict(stored_shapes(model))
    shapes = made(model)
    assert shapes == counted
    layers = {group.name: group.layers for group in groups(model)}
    for parameter, shape in shapes.items():
        size = {**sizes(model), "L": layers.get(parameter.partition("/")[0])}
        letters = stored_letters(parameter)
        assert shape == tuple(size[letter] for letter in letters), parameter


def test_mixtral_counts():
    """46.7 B parameters, of which a token uses 12.9 B (arXiv 2401.04088, section 1)."""
    model = CONFIGS["mixtral_8x7b"].model
    assert parameter_count(model) == 46_702_792_704
    assert active_parameter_count(model) == 12_879_925_248
    shown = as_dict(CONFIGS["mixtral_8x7b"])
    assert shown["parameters"]["total"] == 46_702_792_704
    assert shown["parameters"]["active"] == 12_879_925_248
    looked_up = 32_000 * 4096  # the input embedding
    n, attention = 12_879_925_248 - looked_up, 12 * 32 * 32 * 128 * 4096
    assert shown["flops_per_token"]["model"]["palm"]["total"] == 6 * n + attention


def test_jetmoe_counts():
    """8.522 B parameters, of which a token uses 2.331 B (arXiv 2404.07413, table 1: 8 B and 2 B),
    from the dimensions of the table. Norms and biases are not in these."""
    model, D = CONFIGS["jetmoe_8b"].model, 2048
    heads, kv, network, routers = 2 * D * D, 2 * D * D, 3 * D * 5632, 2 * 8 * D
    assert (heads * 8, kv, network * 8, routers) == (67_108_864, 8_388_608, 276_824_064, 32_768)
    vectors = (2 + 2) * 24 * D + D  # norms and biases of both mixtures, and the last norm
    embedding = 32_000 * D
    total = embedding + 24 * (8 * heads + kv + 8 * network + routers)
    active = embedding + 24 * (2 * heads + kv + 2 * network + routers)
    assert (total, active) == (8_522_039_296, 2_331_246_592)
    assert parameter_count(model) == total + vectors
    assert active_parameter_count(model) == active + vectors
    shown = as_dict(CONFIGS["jetmoe_8b"])
    assert shown["parameters"]["active"] == active + vectors
    # Tied, so the embedding multiplies. A token's two experts attend with 16 heads of 128 each.
    n, attention = active + vectors, 12 * 24 * (2 * 16) * 128 * 4096
    assert shown["flops_per_token"]["model"]["palm"]["total"] == 6 * n + attention


def test_experts_have_no_energy_table():
    with pytest.raises(UserError, match="no energy table for a mixture of experts"):
        as_dict(CONFIGS["mixtral_8x7b"], energy=True)


def test_a_dense_model_is_active_as_a_whole():
    assert active_parameter_count(LLAMA_2_7B) == parameter_count(LLAMA_2_7B)


@pytest.mark.parametrize("name", PALM)
def test_palm_counts(name):
    """8.63, 62.50 and 540.36 billion parameters, as in PaLM's table 1."""
    model = MODELS[name]
    assert parameter_count(model) == PALM[name]
    assert (
        stored_parameter_count(model) - PALM[name]
        == (model.vocab_rows - model.vocab_size) * model.d_model
    )


def test_llama_counts():
    """Those of the published weights (Llama 2, arXiv 2307.09288; Llama 3, arXiv 2407.21783)."""
    assert parameter_count(LLAMA_2_7B) == 6_738_415_616
    assert parameter_count(LLAMA_3_8B) == 8_030_261_248


GPT_3 = [name for name in CONFIGS if name.startswith("gpt3_")]


@pytest.mark.parametrize("name", GPT_3)
def test_gpt_3_counts(name):
    """Brown et al., arXiv 2005.14165, table 2.1: matrices, biases, norms, and both tables."""
    model, nominal = CONFIGS[name].model, name.removeprefix("gpt3_").replace("_", ".")
    D, L = model.d_model, model.layers
    count = (50_257 + 2048) * D + L * (12 * D**2 + 13 * D) + 2 * D
    assert parameter_count(model) == count
    billions = float(nominal[:-1]) / (1000 if nominal.endswith("m") else 1)
    assert count / 1e9 == pytest.approx(billions, rel=0.025)
    assert f"{count:,}" in " ".join((CONFIG_FILES / f"{name}.py").read_text().split())


def test_a_padded_vocabulary_is_stored_and_not_counted():
    model = dataclasses.replace(LLAMA_3_8B, vocab_size=128_200)
    assert made(model)["head_DV"] == (4096, 128_256) and made(model)["embedding_VD"] == (
        128_256,
        4096,
    )
    assert stored_parameter_count(model) - parameter_count(model) == 2 * 56 * 4096


def test_pythia_counts():
    """Biderman et al., arXiv 2304.01373, table 1: 6.9B has 6,857,302,016 parameters, of which
    6,444,163,072 are not in the embeddings."""
    assert parameter_count(PYTHIA) == 6_857_302_016
    assert parameter_count(PYTHIA) - 2 * 50_432 * 4096 == 6_444_163_072
