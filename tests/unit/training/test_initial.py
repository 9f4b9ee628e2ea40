"""A run starts from a trained model, records it, and resumes without it."""

import dataclasses
import json
import shutil
import types

import made_tokenizers
import numpy as np
import pytest
from helpers import flat, host_params
from hf_folders import write_hf_folder
from interop_cases import make_run

from paxlike.api.run import open_run
from paxlike.api.training import train_here
from paxlike.config import DataConfig, InitConfig, ModelConfig, UserError
from paxlike.data.huggingface_tokenizer import load_huggingface
from paxlike.data.tokenizer import BytesTokenizer
from paxlike.interop.init_sources import open_initial, open_source
from paxlike.training.checkpoint_reader import CheckpointReader
from paxlike.training.init_plan import changed_fields
from paxlike.training.initial import tokenizer_note
from paxlike.training.run_directory import read_config


@pytest.fixture
def still(config, change):
    """Updates that change no parameter, so that the first ones are in the checkpoint."""
    config = change(config, "train.steps", 2)
    return change(config, "optim.learning_rate", 1e-30)


def start_from(config, path, *init):
    return dataclasses.replace(config, init=InitConfig(str(path), *init))


@pytest.mark.slow
def test_a_run_from_a_hugging_face_folder(still, change, tmp_path, capsys):
    params = host_params(still)
    hf, run = write_hf_folder(tmp_path / "hf", still, params), tmp_path / "run"
    other = ModelConfig(layers=1, d_model=16, vocab_multiple=64)
    config = start_from(dataclasses.replace(still, model=other), hf, True)
    with pytest.raises(UserError, match=r"vocab_size 300 \(source: 320, .*--model flags"):
        train_here(change(config, "model.vocab_size", 300), run, frozenset({"vocab_size"}))
    assert not run.exists()
    train_here(config, run)
    known = read_config(run)
    assert changed_fields(known.model, still.model) == {} and known.init == config.init
    stored = CheckpointReader(run / "checkpoints")
    for name, expected in flat(params).items():
        np.testing.assert_allclose(stored.param(name), expected, rtol=1e-6, err_msg=name)
    told = capsys.readouterr().out
    assert f"starting from the Hugging Face model {hf}\n  10 of 10 parameters are copied" in told
    assert "gives the same ids as the source's" in told and "resuming" not in told
    record = json.loads((run / "init.json").read_text())
    assert str(hf) in record["source"] and set(record["parameters"].values()) == {"copied"}
    before = (run / "init.json").read_bytes()
    shutil.rmtree(hf)
    _, result = train_here(change(config, "train.steps", 4), run)
    assert result.step == 4 and "resuming from step 2" in capsys.readouterr().out
    assert read_config(run).init == config.init and (run / "init.json").read_bytes() == before
    assert open_run(run).step == 4
    without = dataclasses.replace(config, init=InitConfig())
    resumed, source = open_initial(without, run, frozenset())
    assert (resumed.model, resumed.init, source) == (known.model, config.init, None)
    with pytest.raises(UserError, match=f"--init.from other: .* began from {hf}, so no parameters"):
        train_here(start_from(still, "other"), run)


def test_a_run_is_no_source_of_itself(still, tmp_path):
    with pytest.raises(UserError, match="--init.from .* is the run directory itself"):
        train_here(start_from(still, tmp_path / "run"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def edited(**changes):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edited(num_hidden_layers=3), r"layers\.2\.\S+ is missing.*and \d+ more"),
        (edited(intermediate_size=65), r"gate_proj.weight is \(64, 32\), not \(65, 32\)"),
        (edited(model_type="gptj"), "model_type 'gptj' .*; supported are cohere, llama"),
        (edited(vocab_size=100), "tokenizer in .* has 259 ids, the model's vocabulary 100"),
        (edited(eos_token_id=9), "end-of-document id is 1, config.json has eos_token_id 9"),
        (cut, "is not a complete safetensors file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "save the model as safetensors"),
        (shutil.rmtree, "Give a Hugging Face directory, a run directory or a T5X checkpoint"),
    ],
)
def test_a_bad_source_is_named_and_no_run_begins(still, tmp_path, damage, message):
    hf = write_hf_folder(tmp_path / "hf", still, host_params(still))
    damage(hf)
    with pytest.raises(UserError, match=message):
        train_here(start_from(still, hf, True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_tokenizer_is_a_source(still, tmp_path):
    hf = write_hf_folder(tmp_path / "hf", still, host_params(still))
    (hf / "tokenizer.json").unlink()
    assert open_source(str(hf), still).tokenizer is None


def test_tokenizers_are_compared(still, tmp_path):
    known = load_huggingface(made_tokenizers.byte_level(tmp_path / "known"))
    grown = load_huggingface(made_tokenizers.byte_level(tmp_path / "grown", ["<a>", "<b>"]))
    other = load_huggingface(made_tokenizers.sentencepiece_bpe(tmp_path / "other"))

    def note(config, ours, theirs):
        data = types.SimpleNamespace(name="the store", tokenizer=ours)
        return tokenizer_note(config, data, types.SimpleNamespace(tokenizer=theirs))

    assert "gives the same ids as the source's (huggingface, 385 ids)" in note(still, known, known)
    assert "with 2 more ids" in note(still, grown, known)
    assert "the source has none to compare" in note(still, known, None)
    told = note(still, other, known)
    assert told.startswith("WARNING: ") and "'The quick" in told and "--tokenizer" in told
    default = dataclasses.replace(still, data=DataConfig(tokenizer="bytes"))
    told = note(default, BytesTokenizer(), known)
    assert "No data.store is set, so the default corpus is used, with data.tokenizer bytes" in told


def test_a_converted_run_is_a_source_but_is_not_resumed(still, tmp_path):
    imported = make_run(tmp_path / "imported", still)
    command = f"paxlike train CONFIG --init.from {imported} --init.config --run-dir "
    with pytest.raises(UserError, match=f"no optimizer state.* {command}"):
        train_here(still, imported)
    assert not (imported / "data.json").exists() and not (imported / "metrics.jsonl").exists()
    assert open_source(str(imported), still).model == still.model
