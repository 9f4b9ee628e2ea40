"""Prefixes in PEFT folders: exported and imported in every family; what does not fit is named."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from adapter_cases import adapter_run, params_of, rewrite
from interop_cases import KINDS, case

from paxlike.accounting.adapted_parameters import trained_shapes
from paxlike.config import AdaptConfig, UserError
from paxlike.infer.logits import logits
from paxlike.interop import peft_prefix, safetensors
from paxlike.interop.hf import to_hf
from paxlike.interop.init_sources import open_source
from paxlike.interop.new_adapter_runs import adapter_config
from paxlike.interop.peft import export, load
from paxlike.interop.peft_folder import WEIGHTS
from paxlike.interop.peft_prefix import TENSOR
from paxlike.training.loaded_run import load_run
from paxlike.training.run_directory import read_config

pytestmark = pytest.mark.slow

DIRECT = AdaptConfig("prefix", prefix_length=4, prefix_hidden=0)
NETWORK = AdaptConfig("prefix", prefix_length=4, prefix_hidden=6)


ALL = {
    kind: KINDS[kind]
    for kind in (
        "command r, norms of heads", "llama 3.1", "mistral, a window", "gemma 3", "olmo 2",
        "pythia", "gpt-2", "jetmoe",
    )
}  # fmt: skip
ALL["qwen 3, two periods"] = {**KINDS["qwen 3, windows"], "layers": 5}


@pytest.mark.parametrize("shape", ALL.values(), ids=ALL)
def test_export_and_import_are_inverse(tmp_path, shape):
    run = adapter_run(tmp_path, shape, DIRECT)
    assert "from the base's" in export(run, tmp_path / "peft").checked
    load(tmp_path / "peft", tmp_path / "base", tmp_path / "again")
    config = read_config(tmp_path / "again")
    assert config.adapt == DIRECT
    names = dict(trained_shapes(config.model, DIRECT))
    first, second = (params_of(tmp_path / name, names) for name in ("run", "again"))
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)


def test_the_output_of_a_network_is_exported(tmp_path):
    model = KINDS["llama"]
    run = adapter_run(tmp_path, model, NETWORK)
    assert export(run, tmp_path / "peft").parameters == 4 * 2 * 2 * 4 * 4
    rows = safetensors.Tensors(tmp_path / "peft", WEIGHTS).read(TENSOR)
    names = dict(trained_shapes(read_config(run).model, NETWORK))
    w = {n.rpartition("/")[2]: v.astype(np.float64) for n, v in params_of(run, names).items()}
    hidden_QI = np.tanh(w["prefix_rows_QD"] @ w["prefix_in_DI"] + w["prefix_in_bias_I"])
    k_LQKH, v_LQKH = (
        np.einsum("QI,LIKH->LQKH", hidden_QI, w[f"prefix_{x}_out_IKH"])
        + w[f"prefix_{x}_bias_KH"][:, None]
        for x in "kv"
    )
    expected = [[x[q].ravel() for k, v in zip(k_LQKH, v_LQKH, strict=True) for x in (k, v)]
                for q in range(4)]  # fmt: skip
    np.testing.assert_allclose(rows, np.reshape(expected, (4, -1)), atol=1e-6)
    load(tmp_path / "peft", tmp_path / "base", tmp_path / "again")
    assert read_config(tmp_path / "again").adapt == DIRECT


def test_a_wrong_layout_is_refused(tmp_path, monkeypatch):
    run = adapter_run(tmp_path, KINDS["palm"], DIRECT)
    monkeypatch.setattr(peft_prefix, "interleave", lambda x: x)
    with pytest.raises(UserError, match="logits of the converted adapter differ"):
        export(run, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_a_run_that_also_trains_weights_is_refused(tmp_path):
    adapt = AdaptConfig("prefix", prefix_length=4, prefix_hidden=0, train=("norms",))
    run = adapter_run(tmp_path, KINDS["llama"], adapt)
    with pytest.raises(UserError, match="prefix and also trains norms; .* without adapt.train"):
        export(run, tmp_path / "peft")


def test_an_imported_run_has_room_for_its_prefix():
    base = case(**KINDS["gpt-2"], attention="splash")
    config = adapter_config(base, DIRECT, Path("base"))
    assert base.data.sequence_length == config.model.learned_positions == 64
    assert config.data.sequence_length == 60 and config.model.attention == "auto"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft")
    export(adapter_run(folder, KINDS["llama"], DIRECT), folder / "peft")
    return folder


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"peft_type": "P_TUNING"}, "'P_TUNING'; supported is LORA or PREFIX_TUNING"),
        ({"num_layers": 3}, "has num_layers 3; the base has 2"),
        ({"num_attention_heads": 8}, "has num_attention_heads 8; the base has 4"),
        ({"token_dim": 32}, "has token_dim 32; the base has 16"),
        ({"num_transformer_submodules": 2}, "has num_transformer_submodules 2; supported is 1"),
        ({"modules_to_save": ["score"]}, "has modules_to_save"),
        ({"num_virtual_tokens": 5}, r"prompt_embeddings is \(4, 64\), not \(5, 64\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, tmp_path, setting, message):
    shutil.copytree(folder / "peft", tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **setting}))
    with pytest.raises(UserError, match=message):
        load(tmp_path / "peft", folder / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(other=t.pop(TENSOR)),
         "prompt_embeddings is missing; other is no part of a prefix"),
        (lambda t: t.update({TENSOR: t[TENSOR][:, :32]}),
         r"prompt_embeddings is \(4, 32\), not \(4, 64\).*; with prefix_projection, PEFT saves"),
    ],
    ids=["missing and unused", "shape"],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(folder, tmp_path, change, message):
    shutil.copytree(folder / "peft", tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prefix_projection": True}))
    rewrite(tmp_path / "peft", change)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "peft", folder / "base", tmp_path / "out")


# ---- the real library ----------------------------------------------------------------------------


def our_logits(run: Path, tokens_T: np.ndarray) -> np.ndarray:
    loaded = load_run(run, open_base=open_source)
    with jax.set_mesh(loaded.mesh):
        return logits(loaded.config.model, loaded.numerics, loaded.params, tokens_T[None])[0]


@pytest.mark.optional("torch", "transformers", "peft")
@pytest.mark.parametrize("kind", ["palm", "llama", "pythia", "gpt-2", "gemma 2"])
def test_peft_has_the_same_logits_and_its_folder_is_read(tmp_path, kind):
    """Also compared with the base: a prefix that is not there would agree with that."""
    import torch
    import transformers
    from peft import PeftModel

    run = adapter_run(tmp_path, KINDS[kind], DIRECT)
    export(run, tmp_path / "peft")
    to_hf(tmp_path / "base", tmp_path / "hf")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    tokens_T = np.arange(3, 23, dtype=np.int32)
    inputs = torch.tensor(tokens_T[None].astype(np.int64))
    with torch.no_grad():
        theirs = model(inputs).logits[0].numpy()
        with model.disable_adapter():
            plain = model(inputs).logits[0].numpy()
    expected = our_logits(run, tokens_T)
    assert np.abs(theirs - expected).max() < 1e-4 * expected.std()
    assert np.abs(theirs - plain).max() > 0.1 * expected.std()
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    load(tmp_path / "saved", tmp_path / "hf", tmp_path / "back")
    assert np.abs(our_logits(tmp_path / "back", tokens_T) - theirs).max() < 1e-4 * expected.std()


@pytest.mark.optional("torch", "transformers", "peft")
def test_a_prefix_that_peft_projects_is_read(tmp_path):
    import torch
    import transformers
    from peft import PrefixTuningConfig, get_peft_model

    adapter_run(tmp_path, KINDS["llama"], DIRECT)
    to_hf(tmp_path / "base", tmp_path / "hf")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    settings = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7
    )
    torch.manual_seed(0)
    model = get_peft_model(base, settings).eval()
    tokens_T = np.arange(3, 23, dtype=np.int32)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens_T[None].astype(np.int64))).logits[0].numpy()
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    load(tmp_path / "saved", tmp_path / "hf", tmp_path / "run of peft")
    ours = our_logits(tmp_path / "run of peft", tokens_T)
    assert np.abs(ours - theirs).max() < 1e-4 * theirs.std()
