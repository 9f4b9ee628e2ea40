"""Training directly on a seqio Task or Mixture: learning, resumption and errors."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from paxlike.config import ConfigError, DataConfig, MeshConfig, UserError
from paxlike.data import seqio_mixture
from paxlike.training.loaded_run import evaluate_run, load_run
from paxlike.training.loop import train

pytestmark = pytest.mark.optional("seqio")
MODULE = Path(__file__).parents[2] / "seqio_tasks.py"


@pytest.fixture(params=["split", "whole"])
def direct(request, config):
    """The config of the small run, with a mixture instead of a store."""
    data = DataConfig(
        seqio_mixture="made_mixture", module=str(MODULE), sequence_length=32, packing=request.param
    )
    return dataclasses.replace(config, data=data)


def lines(folder) -> dict:
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in read if "event" not in line}


def test_a_run_learns_resumes_and_evaluates(direct, change, tmp_path):
    result = train(direct, tmp_path / "whole")
    whole = lines(tmp_path / "whole")
    assert whole[6]["loss"] < whole[1]["loss"] - 0.5 and result.evaluation["tokens"] > 5
    assert len({line["batch_fingerprint"] for line in whole.values()}) == 6
    train(change(direct, "train.steps", 3), tmp_path / "parts")
    seqio_mixture.open_mixture.cache_clear()
    train(change(change(direct, "mesh.data", 8), "mesh.model", 1), tmp_path / "parts")
    parts = lines(tmp_path / "parts")
    assert [parts[k]["batch_fingerprint"] for k in parts] == [
        whole[k]["batch_fingerprint"] for k in whole
    ]
    np.testing.assert_allclose(
        [parts[k]["loss"] for k in parts], [whole[k]["loss"] for k in whole], rtol=1e-5
    )
    run = load_run(tmp_path / "whole", MeshConfig(data=2, model=4))
    found = evaluate_run(run, tmp_path / "whole", direct.eval.batches)
    assert run.step == 6 and found == pytest.approx(result.evaluation)
    recorded = json.loads((tmp_path / "whole" / "data.json").read_text())
    assert recorded["store"] == "seqio:made_mixture" and len(recorded["fingerprint"]) == 64
    assert load_run(tmp_path / "whole").tokenizer.kind == "bytes"


def test_another_mixture_or_changed_content_is_rejected(direct, change, tmp_path):
    other = change(direct, "train.steps", 2)
    train(other, tmp_path / "run")
    with pytest.raises(UserError, match="belongs to another config.*seqio_mixture"):
        train(
            dataclasses.replace(
                other, data=dataclasses.replace(direct.data, seqio_mixture="made_questions")
            ),
            tmp_path / "run",
        )
    recorded = json.loads((tmp_path / "run" / "data.json").read_text())
    (tmp_path / "run" / "data.json").write_text(json.dumps({**recorded, "fingerprint": "0" * 64}))
    with pytest.raises(
        UserError,
        match="the seqio mixture made_mixture has fingerprint .*, the run began with 0000",
    ):
        train(other, tmp_path / "run")


def test_configuration_errors_are_raised_before_the_run_directory_is_created(
    direct, change, tmp_path
):
    with pytest.raises(ConfigError, match="model.vocab_size 250 is smaller than the 259 ids"):
        train(change(direct, "model.vocab_size", 250), tmp_path / "run")
    with pytest.raises(
        UserError,
        match="no seqio Task or Mixture 'mixture' is registered; registered are made_mixture",
    ):
        train(change(direct, "data.seqio_mixture", "mixture"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
