"""Runs to Hugging Face folders and back: equal logits, also in the real libraries; clean errors."""

import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import host_params
from interop_cases import KINDS, PROMPT, case, expected_logits, in_dtype, make_run

from paxlike.accounting.parameters import parameter_count
from paxlike.config import ExpertsConfig, ModelConfig, QuantConfig, UserError
from paxlike.infer.generate import Generator
from paxlike.interop import hf, hf_layout
from paxlike.interop.families.family import layers_of
from paxlike.interop.hf import from_hf, to_hf
from paxlike.interop.hf_forward import logits as hf_logits
from paxlike.interop.safetensors import Entry, Tensors, write
from paxlike.training.checkpoint import write_checkpoint
from paxlike.training.checkpoint_reader import CheckpointReader
from paxlike.training.loaded_run import load_run
from paxlike.training.run_directory import read_config

real = pytest.mark.optional("torch", "transformers")
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "hf_logits.json"


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def exported(kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    config = case(**KINDS[kind])
    to_hf(make_run(folder / "run", config), folder / "out")
    return config, folder / "out"


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    to_hf(make_run(folder / "run", case()), folder / "out")
    return folder


@pytest.fixture
def small(intact, tmp_path):
    """(folder of an exported PaLM, config), to be damaged."""
    shutil.copytree(intact, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out", case()


def rewrite(folder: Path, change) -> None:
    """Rewrites the tensors of a folder after `change(dict)`."""
    tensors = Tensors(folder)
    arrays = {name: tensors.read(name) for name in tensors.shapes}
    change(arrays)
    entries = [
        Entry(name, array.shape, lambda array=array: array) for name, array in arrays.items()
    ]
    write(folder, entries, np.dtype("float32"), 10**9)


def edit(path: Path, **changes) -> None:
    hf_config = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            {key: value for key, value in {**hf_config, **changes}.items() if value is not ...}
        )
    )


# ---- the same model ------------------------------------------------------------------------------


@real
def test_the_real_library_computes_the_same_logits(exported):
    import torch
    import transformers

    config, folder = exported
    model, loading_info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype="float32"
    )
    assert (
        type(model).__name__ == json.loads((folder / "config.json").read_text())["architectures"][0]
    )
    assert not any(loading_info.values()), loading_info
    with torch.no_grad():
        found = model(torch.tensor(PROMPT[None].astype(np.int64))).logits[0].numpy()
    np.testing.assert_allclose(found, expected_logits(config), atol=2e-5)
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor(PROMPT[None].astype(np.int64)),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
        )
    run = load_run(folder.parent / "run")
    with jax.set_mesh(run.mesh):
        generator = Generator(config.model, run.numerics, run.params, eod=-1, max_length=40)
        (ours,) = generator.generate([PROMPT], 12)
    np.testing.assert_array_equal(ours, theirs[0, len(PROMPT) :].numpy())


def test_the_golden_logits_of_the_real_library(kind, exported):
    """The first logits at the last position, stored by `python -m tools.update_hf_goldens`."""
    config, folder = exported
    golden = json.loads(GOLDEN.read_text())[kind]
    hf_config = json.loads((folder / "config.json").read_text())
    np.testing.assert_allclose(expected_logits(config)[-1, : len(golden)], golden, atol=2e-5)
    np.testing.assert_allclose(
        hf_logits(hf_config, Tensors(folder).read, PROMPT)[-1, : len(golden)], golden, atol=2e-5
    )


def test_a_round_trip_gives_the_same_run(exported, tmp_path):
    config, folder = exported
    from_hf(folder, tmp_path / "back")
    back, stored = (
        read_config(tmp_path / "back"),
        CheckpointReader(tmp_path / "back" / "checkpoints"),
    )
    assert back.data.sequence_length == 64 and stored.step == 0
    changed = {"vocab_multiple", "attention", "logit_scale", "block"}
    assert back.model.block_kinds == config.model.block_kinds
    if config.model.rope_scaling.kind == "linear":
        assert back.model.rope_scaling.factor == config.model.rope_scaling.factor
    same = lambda model: {k: v for k, v in vars(model).items() if k not in changed}  # noqa: E731
    assert same(back.model) == same(config.model)
    scaled = ("scale_D", "norm_bias_D")
    ratio = config.model.logits_factor / back.model.logits_factor
    for path, expected in jax.tree_util.tree_leaves_with_path(host_params(config)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found, vocab = stored.param(name), config.model.vocab_size
        if name == "embedding_VD":
            assert not found[vocab:].any()
            found, expected = found[:vocab], expected[:vocab]
        if name == "head_DV":
            assert not found[:, vocab:].any()
            found, expected = found[:, :vocab], expected[:, :vocab]
        if name in scaled:
            offset = config.model.norm_offset
            expected = (offset + expected) * ratio - offset
        np.testing.assert_allclose(found, expected, rtol=1e-6 if name in scaled else 0)


@pytest.mark.parametrize("kind_", ["palm", "llama, tied"])
def test_bfloat16_stays_bfloat16(kind_, tmp_path):
    config, params = in_dtype(case(**KINDS[kind_]), "bfloat16")
    to_hf(make_run(tmp_path / "run", config, params=params), tmp_path / "out")
    assert {dtype.name for dtype in Tensors(tmp_path / "out").dtypes} == {"bfloat16"}
    from_hf(tmp_path / "out", tmp_path / "back")
    stored = CheckpointReader(tmp_path / "back" / "checkpoints")
    assert read_config(tmp_path / "back").precision.params == "bfloat16"
    np.testing.assert_array_equal(stored.param("blocks/wq_DNH"), params["blocks"]["wq_DNH"])


def test_a_different_logit_scale(small, tmp_path):
    """Cohere's own models have a logit_scale of about 0.0625 at any width."""
    folder, config = small
    edit(folder / "config.json", logit_scale=0.5)
    from_hf(folder, tmp_path / "back")
    stored = CheckpointReader(tmp_path / "back" / "checkpoints")
    assert read_config(tmp_path / "back").model.logit_scale == 0.5
    np.testing.assert_array_equal(stored.param("scale_D"), host_params(config)["scale_D"])


def test_buffers_of_older_llamas_are_ignored(small, tmp_path):
    folder, _ = small
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda arrays: arrays.update({name: np.ones(2, np.float32)}))
    from_hf(folder, tmp_path / "back")


def test_shards(tmp_path):
    config = case()
    to_hf(make_run(tmp_path / "run", config), tmp_path / "out", shard_bytes=30_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    largest = config.model.vocab_size * config.model.d_model * 4
    assert len(files) == 3 and all(
        file.stat().st_size <= max(30_000, largest) + 4096 for file in files
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [file.name for file in files]
    found = hf_logits(
        json.loads((tmp_path / "out/config.json").read_text()),
        Tensors(tmp_path / "out").read,
        PROMPT,
    )
    np.testing.assert_allclose(found, expected_logits(config), atol=2e-5)


@real
def test_transformers_loads_shards(tmp_path):
    import transformers

    to_hf(make_run(tmp_path / "run", case()), tmp_path / "out", shard_bytes=30_000)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_given_step_and_a_missing_step(tmp_path):
    run = make_run(tmp_path / "run", case())
    other = host_params(case(), seed=1)
    write_checkpoint(run / "checkpoints", {"params": other}, 9, {"step": 9})
    to_hf(run, tmp_path / "newest")
    to_hf(run, tmp_path / "seventh", step=7)
    embedding = {
        name: Tensors(tmp_path / name).read("model.embed_tokens.weight")[:90]
        for name in ("newest", "seventh")
    }
    np.testing.assert_array_equal(embedding["newest"], other["embedding_VD"][:90])
    np.testing.assert_array_equal(embedding["seventh"], host_params(case())["embedding_VD"][:90])
    with pytest.raises(UserError, match="no checkpoint 8"):
        to_hf(run, tmp_path / "eighth", step=8)


def test_the_longest_sequence_is_that_of_the_learned_positions():
    """Also where the run was trained on shorter ones: the table has its size in transformers."""
    gpt2, palm = case(**KINDS["gpt-2"]).model, case().model
    found = [
        hf_layout.to_config(m, 48, "float32", 0)["max_position_embeddings"] for m in (gpt2, palm)
    ]
    assert found == [64, 48]


# ---- errors leave nothing behind -----------------------------------------------------------------


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_wrong_layout_raises_and_leaves_nothing(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", case())
    monkeypatch.setattr(hf_layout, "interleave", lambda x: x)
    with pytest.raises(UserError, match="logits differ from the original's by"):
        to_hf(run, tmp_path / "out")
    assert contents(tmp_path) == {"run"}


def test_parameters_that_are_not_finite_raise(tmp_path):
    params = host_params(case())
    params["blocks"]["wup_DF"][1, 0, 0] = np.nan
    with pytest.raises(UserError, match="differ from the original's by nan"):
        to_hf(make_run(tmp_path / "run", case(), params=params), tmp_path / "out")
    assert contents(tmp_path) == {"run"}


def test_an_existing_folder_is_not_overwritten(small, tmp_path):
    folder, _ = small
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for convert in (lambda: to_hf(tmp_path / "run", folder), lambda: from_hf(folder, folder)):
        with pytest.raises(UserError, match="already exists"):
            convert()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "changes_from_palm",
    [{"norm": "rms"}, {"block": "serial"}, {"feed_forward": "gelu"}, {"feed_forward": "relu2"}],
)
def test_models_without_an_equivalent(changes_from_palm, tmp_path):
    with pytest.raises(UserError, match="loads without custom code"):
        to_hf(make_run(tmp_path / "run", case(**changes_from_palm)), tmp_path / "out")
    assert contents(tmp_path) == {"run"}


def test_quantized_models_have_no_equivalent():
    with pytest.raises(UserError, match="computes with quantized weights"):
        hf_layout.family(ModelConfig(quant=QuantConfig(weights="bitnet")))


def damage_missing(arrays):
    del arrays["model.layers.1.mlp.up_proj.weight"]


def damage_extra(arrays):
    arrays["model.layers.2.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)


def damage_shape(arrays):
    arrays["model.layers.0.self_attn.k_proj.weight"] = np.zeros((8, 32), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage_missing, r"model\.layers\.1\.mlp\.up_proj\.weight is missing"),
        (damage_extra, r"model\.layers\.2\.mlp\.up_proj\.weight \(48, 32\) is unexpected"),
        (damage_shape, r"k_proj\.weight is \(8, 32\), not \(4, 32\)"),
    ],
)
def test_tensors_that_do_not_fit(change, message, small, tmp_path):
    folder, _ = small
    rewrite(folder, change)
    with pytest.raises(UserError, match=message):
        from_hf(folder, tmp_path / "back")
    assert contents(tmp_path) == {"run", "out"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "falcon"}, "has model_type 'falcon'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
            "scales RoPE as .*rope_type may be default, linear, llama3, yarn",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "long": 4.0}},
            r"scales RoPE as .*\(unknown: long\)",
        ),
        ({"rope_scaling": {"type": "linear"}, "rope_parameters": None}, "without a factor"),
        ({"sliding_window": 32}, "sliding_window 32, less than max_position_embeddings 64"),
        ({"rope_theta": ..., "rope_parameters": ...}, "has no rope_theta"),
        ({"attention_bias": True}, "has attention_bias True"),
        ({"use_qk_norm": True}, r"self_attn\.q_norm\.weight is missing"),
        ({"hidden_act": "gelu"}, "has hidden_act 'gelu'"),
        ({"hidden_size": ...}, "has no hidden_size"),
        (
            {"vocab_size": 100},
            "tokenizer in .* does not match the model: it has 259 ids, the model's vocabulary 100",
        ),
        ({"eos_token_id": 2}, "end-of-document id is 1, config.json has eos_token_id 2"),
    ],
)
def test_configs_that_are_not_supported(changes, message, small, tmp_path):
    folder, _ = small
    edit(folder / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        from_hf(folder, tmp_path / "back")
    assert contents(tmp_path) == {"run", "out"}


def test_a_folder_without_a_config_or_with_pickles(small, tmp_path):
    folder, _ = small
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="save the model as safetensors"):
        from_hf(folder, tmp_path / "back")
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        from_hf(folder, tmp_path / "back")


def test_the_tolerance_allows_only_rounding():
    assert hf.TOLERANCE["float32"] <= 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05; supported for jetmoe is 1e-06"),
        ({"activation_function": "gelu"}, "has activation_function 'gelu'"),
        ({"kv_channels": ...}, "has no kv_channels"),
        ({"num_local_experts": ...}, "has no num_local_experts"),
    ],
)
def test_a_jetmoe_that_is_not_supported(changes, message, tmp_path):
    to_hf(make_run(tmp_path / "run", case(**KINDS["jetmoe"])), tmp_path / "out")
    edit(tmp_path / "out/config.json", **changes)
    with pytest.raises(UserError, match=message):
        from_hf(tmp_path / "out", tmp_path / "back")


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_heads": 4},
        {"norm_epsilon": 1e-5},
        {"experts": ExpertsConfig(4, 2, 24)},
        {"block": "serial_experts"},
        {"experts": ExpertsConfig(4, 2, 24, 1, output_bias=True)},
    ],
    ids=["grouped", "epsilon", "no-bias", "mixtral-with-a-bias", "shared"],
)
def test_expert_heads_without_an_equivalent(changes):
    with pytest.raises(UserError, match="has no equivalent in Hugging Face"):
        hf_layout.family(case(**{**KINDS["jetmoe"], **changes}).model)


@pytest.mark.parametrize("kind", ["mistral", "llama"])
def test_a_mistral_is_read_as_it_is(kind, tmp_path):
    """Mistral's architecture without a sliding window, or with one of the whole context."""
    config = case(**KINDS["llama"])
    to_hf(make_run(tmp_path / "run", config), tmp_path / "out")
    edit(tmp_path / "out/config.json", model_type=kind, sliding_window=64)
    from_hf(tmp_path / "out", tmp_path / "back")
    assert read_config(tmp_path / "back").model.block == "serial"


RMS = {"rms_norm_eps": 1e-6, "rope_theta": 1e4}
GEMMA_2 = {
    "model_type": "gemma2", "head_dim": 256, "vocab_size": 256_000, "sliding_window": 4096,
    "max_position_embeddings": 8192, "query_pre_attn_scalar": 256, **RMS,
}  # fmt: skip
PUBLISHED = {
    124_439_808: {
        "model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "vocab_size": 50_257, "layer_norm_epsilon": 1e-5,
    },
    2_614_341_888: {
        **GEMMA_2, "hidden_size": 2304, "num_attention_heads": 8, "num_key_value_heads": 4,
        "intermediate_size": 9216, "num_hidden_layers": 26,
    },
    9_241_705_984: {
        **GEMMA_2, "hidden_size": 3584, "num_attention_heads": 16, "num_key_value_heads": 8,
        "intermediate_size": 14_336, "num_hidden_layers": 42,
    },
    999_885_952: {
        **GEMMA_2, "model_type": "gemma3_text", "hidden_size": 1152, "num_attention_heads": 4,
        "num_key_value_heads": 1, "intermediate_size": 6912, "num_hidden_layers": 26,
        "vocab_size": 262_144, "sliding_window": 512, "max_position_embeddings": 32_768,
    },
    7_298_617_344: {
        "model_type": "olmo2", "hidden_size": 4096, "num_attention_heads": 32,
        "intermediate_size": 11_008, "num_hidden_layers": 32, "vocab_size": 100_352, **RMS,
    },
    7_241_732_096: {
        "model_type": "mistral", "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "vocab_size": 32_000, "sliding_window": 4096, "max_position_embeddings": 32_768, **RMS,
    },
    103_810_674_688: {
        "model_type": "cohere", "hidden_size": 12_288, "num_attention_heads": 96,
        "num_key_value_heads": 8, "intermediate_size": 33_792, "num_hidden_layers": 64,
        "vocab_size": 256_000, "layer_norm_eps": 1e-5, "rope_theta": 75e6, "use_qk_norm": True,
    },
    46_702_792_704: {
        "model_type": "mixtral", "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "vocab_size": 32_000, "num_local_experts": 8, "num_experts_per_tok": 2, **RMS,
    },
    30_532_122_624: {
        "model_type": "qwen3_moe", "hidden_size": 2048, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "vocab_size": 151_936,
        "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, **RMS,
    },
    8_522_237_952: {
        "model_type": "jetmoe", "hidden_size": 2048, "num_attention_heads": 32,
        "num_key_value_heads": 16, "kv_channels": 128, "intermediate_size": 5632,
        "num_hidden_layers": 24, "vocab_size": 32_000, "num_local_experts": 8,
        "num_experts_per_tok": 2, **RMS,
    },
}  # fmt: skip
"""Parameters of GPT-2, Gemma 2 2B and 9B, Gemma 3 1B, OLMo 2 7B, Mistral 7B, Command R+, Mixtral
8x7B and Qwen 3 30B-A3B, as the model hub shows them, and of JetMoE 8B (arXiv 2404.07413, table 1,
with norms and biases) -> their config.json."""


@pytest.mark.parametrize(("count", "hf_config"), PUBLISHED.items())
def test_published_models_have_the_published_number_of_parameters(count, hf_config):
    model = hf_layout.from_config(hf_config)
    assert parameter_count(model) == count
    sizes = {t.name: t.shape for t in hf_layout.tensors(model, hf_layout.family_of(hf_config))}
    assert sum(math.prod(shape) for shape in sizes.values()) == count


@pytest.mark.parametrize(
    ("layers", "pattern"),
    [
        ("gggg", ("serial", ())),
        ("lll", ("serial_local", ())),
        ("lgl", ("serial", ("serial_local", "serial"))),
        ("llgllgl", ("serial", ("serial_local", "serial_local", "serial"))),
        ("ggl", ("serial", ("serial", "serial", "serial_local"))),
    ],
)
def test_the_shortest_pattern_of_layers(layers, pattern):
    found = layers_of([kind == "l" for kind in layers], 16)
    assert (found["block"], found.get("pattern", ())) == pattern
    assert found["sliding_window"] == (16 if "l" in layers else 0)


def test_a_gpt2_file_without_the_prefix(tmp_path):
    config = case(**KINDS["gpt-2"])
    to_hf(make_run(tmp_path / "run", config), tmp_path / "out")

    def without(arrays):
        for name in list(arrays):
            arrays[name.removeprefix("transformer.")] = arrays.pop(name)
        arrays["h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.float32)

    rewrite(tmp_path / "out", without)
    from_hf(tmp_path / "out", tmp_path / "back")
    stored = CheckpointReader(tmp_path / "back" / "checkpoints")
    np.testing.assert_array_equal(stored.param("positions_PD"), host_params(config)["positions_PD"])


def test_older_and_newer_names_of_rope(tmp_path):
    config = case(**KINDS["llama 3.1"])
    to_hf(make_run(tmp_path / "run", config), tmp_path / "out")
    edit(tmp_path / "out/config.json", rope_parameters=...)
    from_hf(tmp_path / "out", tmp_path / "older")
    assert read_config(tmp_path / "older").model.rope_scaling == config.model.rope_scaling
