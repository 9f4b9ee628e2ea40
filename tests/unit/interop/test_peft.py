"""LoRA in PEFT folders: exported, imported, merged; and what does not fit is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from adapter_cases import adapter_run, config_of, params_of, rewrite
from helpers import error, flat, host_params

from paxlike.config import AdaptConfig, ExpertsConfig, UserError
from paxlike.interop.adapted_runs import merge
from paxlike.interop.hf import to_hf
from paxlike.interop.peft import export, load
from paxlike.interop.peft_lora_layout import PREFIX
from paxlike.training.checkpoint_reader import CheckpointReader

pytestmark = pytest.mark.slow

LLAMA = {"block": "serial", "norm": "rms", "head": "untied", "kv_heads": 2}
FAMILIES = {
    "cohere": {"kv_heads": 2},
    "llama": LLAMA,
    "gpt_neox": {
        "block": "parallel_two_norms", "norm_bias": True, "feed_forward": "gelu_exact",
        "feed_forward_bias": True, "attention_bias": "qkvo", "kv_heads": 8, "head": "untied",
        "rope_fraction": 0.5,
    },
    "gpt2": {
        "block": "serial", "norm_bias": True, "feed_forward": "gelu", "feed_forward_bias": True,
        "attention_bias": "qkvo", "learned_positions": 64, "kv_heads": 8, "logit_scale": 1.0,
    },
    "gemma2": {
        "norm": "rms", "norm_placement": "both", "norm_offset": True, "feed_forward": "geglu",
        "embedding_scale": 32**0.5, "query_scale": 0.25, "sliding_window": 5, "kv_heads": 2,
        "layers": 3, "pattern": ("serial_local", "serial"), "logit_scale": 1.0,
    },
    "jetmoe": {
        "block": "serial_expert_heads", "norm": "rms", "kv_heads": 8, "d_ff": 24,
        "experts": ExpertsConfig(4, 2, 24, output_bias=True), "logit_scale": 1.0,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "adapt"),
    [
        (FAMILIES["cohere"], AdaptConfig("lora", 3, 5.0, layers=(1,))),
        (FAMILIES["llama"], AdaptConfig("lora", 2, 3.0, True, targets=("wq", "wo", "wdown"))),
        (FAMILIES["gpt_neox"], AdaptConfig("lora", 2, 3.0, True, targets=("wq", "wv", "wup"))),
        (FAMILIES["gpt2"], AdaptConfig("lora", 2, 3.0, targets=("wq", "wk", "wo", "wup"))),
        (FAMILIES["gemma2"], AdaptConfig("lora", 2, 3.0)),
        (FAMILIES["jetmoe"], AdaptConfig("lora", 2, 3.0, targets=("wk", "wv"))),
    ],
    ids=FAMILIES,
)
def test_export_import_and_merge_are_one_model(tmp_path, shape, adapt):
    run = adapter_run(tmp_path, shape, adapt)
    assert "from the base's" in export(run, tmp_path / "peft").checked
    load(tmp_path / "peft", tmp_path / "base", tmp_path / "again")
    merge(run, tmp_path / "merged")
    merge(tmp_path / "again", tmp_path / "merged again")
    to_hf(tmp_path / "merged", tmp_path / "hf")  # which checks the logits of what was written
    names = flat(host_params(config_of(shape)))
    base, first, second = (
        params_of(tmp_path / name, names) for name in ("base", "merged", "merged again")
    )
    assert max(error(second[name], value) for name, value in first.items()) < 1e-6
    changed = {name for name, value in first.items() if not np.array_equal(value, base[name])}
    words = {name.rpartition("/")[2].partition("_")[0] for name in changed}
    assert words == ({"wq", "wk", "wv", "wo", "wgate", "wup", "wdown"} & {
        *(adapt.targets if adapt.targets != ("all",) else words)
    })  # fmt: skip
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert settings["use_rslora"] == adapt.rank_stabilized and settings["r"] == adapt.rank
    if shape is FAMILIES["gpt_neox"]:
        # q and v are one tensor there, of the sum of their ranks and the same scale.
        assert settings["rank_pattern"] == {"query_key_value": 4}
        assert settings["alpha_pattern"]["query_key_value"] == pytest.approx(3 * 2**0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft")
    run = adapter_run(folder, LLAMA, AdaptConfig("lora", 2, 4.0, targets=("wq", "wv")))
    export(run, folder / "peft")
    return folder


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"use_dora": True}, "has use_dora True; supported is False"),
        ({"bias": "all"}, "has bias 'all'"),
        ({"peft_type": "IA3"}, "has peft_type 'IA3'; supported is LORA or PREFIX_TUNING"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, r"o_proj.lora_A.weight is missing"),
        ({"r": 4}, r"q_proj.lora_A.weight and lora_B are \(2, 32\).* not \(\(4, 32\)"),
    ],
)
def test_settings_without_an_equivalent_are_refused(folder, tmp_path, setting, message):
    shutil.copytree(folder / "peft", tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **setting}))
    with pytest.raises(UserError, match=message):
        load(tmp_path / "peft", folder / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{PREFIX}model.layers.1.self_attn.v_proj.lora_B.weight"),
         "layers.1.self_attn.v_proj.lora_B.weight is missing"),
        (lambda t: t.update({f"{PREFIX}model.embed_tokens.lora_embedding_A": t[next(iter(t))]}),
         "embed_tokens.lora_embedding_A fits no weight of this model"),
        (lambda t: [t.update({n: 0 * v}) for n, v in t.items() if "lora_B" in n],
         "does not change the base's logits"),
    ],
    ids=["missing", "unused", "zero"],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(folder, tmp_path, change, message):
    shutil.copytree(folder / "peft", tmp_path / "peft")
    rewrite(tmp_path / "peft", change)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "peft", folder / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.optional("torch", "transformers", "peft")
@pytest.mark.parametrize("shape", FAMILIES.values(), ids=FAMILIES)
def test_peft_has_the_same_logits_and_its_folder_is_read(tmp_path, shape):
    """Also compared with the base: an adapter that is not applied would agree with that."""
    import peft
    import torch
    import transformers

    from paxlike.interop.reference_logits import logits
    from paxlike.training.run_directory import read_config

    run = adapter_run(tmp_path, shape, AdaptConfig("lora", 2, 3.0, True))
    export(run, tmp_path / "peft")
    merge(run, tmp_path / "merged")
    to_hf(tmp_path / "base", tmp_path / "hf")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    tokens_T = np.arange(3, 23, dtype=np.int32)
    inputs = torch.tensor(tokens_T[None].astype(np.int64))
    with torch.no_grad():
        theirs = model(inputs).logits[0].numpy()
        with model.disable_adapter():
            plain = model(inputs).logits[0].numpy()

    def ours(folder: Path) -> np.ndarray:
        stored = CheckpointReader(folder / "checkpoints")
        return logits(read_config(folder).model, stored.param, tokens_T)

    expected = ours(tmp_path / "merged")
    assert np.abs(theirs - expected).max() < 1e-4 * expected.std()
    assert np.abs(theirs - plain).max() > 0.1 * expected.std()
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    load(tmp_path / "saved", tmp_path / "hf", tmp_path / "back")
    merge(tmp_path / "back", tmp_path / "back merged")
    assert np.abs(ours(tmp_path / "back merged") - expected).max() < 1e-4 * expected.std()
