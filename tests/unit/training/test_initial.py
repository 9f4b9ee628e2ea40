"""A run starts from a trained model, records it, and resumes without it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import flat, host_params
from hf_folders import write_hf_folder
from interop_cases import make_run

from paxlike.api.run import open_run
from paxlike.api.training import train_here
from paxlike.config import InitConfig, ModelConfig, UserError
from paxlike.training.checkpoint_reader import CheckpointReader
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
    assert read_config(run).model == still.model and read_config(run).init == config.init
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
    train_here(change(dataclasses.replace(still), "train.steps", 4), run)  # without --init
    assert read_config(run).init == config.init and (run / "init.json").read_bytes() == before
    assert open_run(run).step == 4


def test_a_run_is_no_source_of_itself(still, tmp_path):
    with pytest.raises(UserError, match="--init.from .* is the run directory itself"):
        train_here(start_from(still, tmp_path / "run"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_converted_run_is_a_source_but_is_not_resumed(still, tmp_path):
    imported = make_run(tmp_path / "imported", still)
    command = f"paxlike train CONFIG --init.from {imported} --init.config --run-dir "
    with pytest.raises(UserError, match=f"no optimizer state.* {command}"):
        train_here(still, imported)
    assert not (imported / "data.json").exists() and not (imported / "metrics.jsonl").exists()
    assert train_here(start_from(still, imported), tmp_path / "run")[1].step == 2
