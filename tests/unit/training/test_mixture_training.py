"""Training on a mixture: each store's validation loss in the log, the report and TensorBoard."""

import dataclasses
import json
import shutil

import pytest

from paxlike.accounting.history import read_history
from paxlike.accounting.report.summary import summarize
from paxlike.accounting.report.table import rows
from paxlike.api.run import open_run
from paxlike.config import UserError
from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.training.loop import train

pytestmark = pytest.mark.slow


@pytest.fixture
def mixed(config, store, tmp_path):
    """The config with two stores: random words, and one repeated letter."""
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text("zz " * 200 + str(number))
    other = tmp_path / "letters"
    prepare(
        PrepareConfig(
            (str(tmp_path / "*.txt"),), str(other), tokenizer="bytes", validation_fraction=0.3
        )
    )
    shutil.copytree(store, tmp_path / "words")
    data = dataclasses.replace(
        config.data, store="", mixture=((str(tmp_path / "words"), 0.25), (str(other), 0.75))
    )
    return dataclasses.replace(
        config, data=data, train=dataclasses.replace(config.train, steps=12),
        log=dataclasses.replace(config.log, tensorboard=True),
    )  # fmt: skip


def test_a_run_on_a_mixture(mixed, change, tmp_path, capsys):
    result = train(mixed, tmp_path / "run")
    words, letters = (name for name, _ in mixed.data.mixture)
    found = result.evaluation
    assert found[f"loss {letters}"] < found[f"loss {words}"]
    mean = 0.25 * found[f"loss {words}"] + 0.75 * found[f"loss {letters}"]
    assert found["loss"] == pytest.approx(mean)
    told = capsys.readouterr().out
    assert f"  {words}: loss {found[f'loss {words}']:.4f}" in told and "epochs read" in told
    history = read_history(tmp_path / "run")
    assert history.mixture[words]["loss"] == pytest.approx(found[f"loss {words}"])
    sections = dict(rows([summarize(history)]))
    assert [label for label, _ in sections["Mixture, at the last evaluation"]] == [words, letters]
    # 8 sequences of 32 tokens in 12 steps, a quarter of them from `words`.
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    (event,) = [line for line in lines if line.get("event") == "evaluation"]
    assert set(event["epochs"]) == {words, letters} and min(event["epochs"].values()) > 0
    assert open_run(tmp_path / "run", mesh=mixed.mesh).evaluate(mixed.eval.batches) == (
        pytest.approx(found)
    )
    half = change(mixed, "train.steps", 6)
    train(half, tmp_path / "half")
    resumed = train(mixed, tmp_path / "half")
    assert resumed.evaluation == found


def test_the_content_of_a_store_must_stay(mixed, tmp_path):
    train(mixed, tmp_path / "run")
    first, second = (name for name, _ in mixed.data.mixture)
    shutil.rmtree(first)
    shutil.copytree(second, first)
    longer = dataclasses.replace(mixed, train=dataclasses.replace(mixed.train, steps=14))
    with pytest.raises(UserError, match="its content or packing changed"):
        train(longer, tmp_path / "run")
