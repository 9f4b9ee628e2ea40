"""`paxlike prune`: a complete run with fewer layers, healed by training; and what is refused."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import host_params, write_run

from paxlike import cli
from paxlike.api.run import open_run
from paxlike.config import AdaptConfig, DataConfig, InitConfig, MeshConfig, UserError, to_json
from paxlike.data.mixture import open_stores
from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.data.store import open_store
from paxlike.data.tokenizer import BytesTokenizer
from paxlike.interop.init_sources import open_initial
from paxlike.training.checkpoint_reader import CheckpointReader
from paxlike.training.layer_distances import Text, measure
from paxlike.training.loaded_run import load_run
from paxlike.training.loop import train


@pytest.fixture
def prune(monkeypatch, capsys):
    """prune(*arguments) -> (exit code, stdout, stderr) of `paxlike prune arguments`."""

    def call(*arguments: object):
        monkeypatch.setattr(sys, "argv", ["paxlike", "prune", *map(str, arguments)])
        monkeypatch.setattr("paxlike.parallel.runtime.start", lambda *_, **__: None)
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return call


def evaluated(folder: Path) -> float:
    """The validation loss that training recorded last."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line.get("event") == "evaluation"][-1]


@pytest.mark.slow
def test_a_run_is_pruned_and_healed(config, change, prune, tmp_path):
    """A run without data, as a conversion writes it."""
    base = change(change(config, "model.layers", 3), "eval.batches", 100)
    params, folder = host_params(base), tmp_path / "pruned"
    write_run(base, tmp_path / "base", params)
    code, out, err = prune(
        tmp_path / "base", folder, "--layers", 1, "--data.store", base.data.store
    )
    assert code == 0 and "sequences" in err
    record = json.loads((folder / "pruning.json").read_text())
    assert [len(row) for row in record["distances"]] == [3, 2, 1]
    (dropped,) = record["dropped"]
    assert record["distance"] == min(record["distances"][0]) == record["distances"][0][dropped]
    assert record["run"] == str(tmp_path / "base") and record["step"] == 0
    assert f"{record['loss_before']:.4f} before, {record['loss_after']:.4f} after" in out
    assert (folder / "pruning.html").read_text().startswith("<!DOCTYPE html>")

    # The checkpoint has the other layers, bit for bit.
    stored = CheckpointReader(folder / "checkpoints")
    for name, stack in params["blocks"].items():
        rest = np.delete(stack, dropped, axis=0)
        np.testing.assert_array_equal(stored.param(f"blocks/{name}"), rest)
    np.testing.assert_array_equal(stored.param("embedding_VD"), params["embedding_VD"])

    adapt = AdaptConfig("lora", rank=8, alpha=8.0, dropout=0.05, targets=("feed-forward",))
    healing = dataclasses.replace(base, adapt=adapt, init=InitConfig(str(folder), config=True))
    healing = change(change(healing, "train.steps", 16), "checkpoint.every", 100)
    healing, source = open_initial(healing, tmp_path / "healed", frozenset())
    assert healing.model.layers == 2
    state = train(healing, tmp_path / "healed", source).state
    assert all("lora" in name for name in state.params["blocks"])
    assert evaluated(tmp_path / "healed") < record["loss_after"] - 0.1


@pytest.mark.slow
def test_recorded_data_and_mixtures_are_measured(config, store, prune, tmp_path):
    (tmp_path / "0.txt").write_text("".join(f"{n} " for n in range(900)))
    (tmp_path / "1.txt").write_text("".join(f"{n} is not {n + 1}. " for n in range(300)))
    options = {"tokenizer": "bytes", "validation_fraction": 0.5}
    texts = (f"{tmp_path}/*.txt",)
    other = prepare(PrepareConfig(texts, str(tmp_path / "other"), **options)).folder
    base = write_run(config, tmp_path / "base", host_params(config))
    recorded = {"store": str(store), "fingerprint": open_store(store).fingerprint}
    (base / "data.json").write_text(json.dumps(recorded))
    code, out, _ = prune(base, "--html", tmp_path / "page.html")
    assert code == 0 and f"loss {open_run(base).evaluate()['loss']:.4f}" in out
    assert "layer 0" in out or "layer 1" in out
    assert "dropped" not in out
    assert (tmp_path / "page.html").read_text().count("<rect") == 2

    run, data = load_run(base, MeshConfig()), dataclasses.replace(config.data, store="")
    mixed = dataclasses.replace(data, mixture=((str(store), 3.0), (str(other), 1.0)))
    sources = (open_store(store), data), (open_store(other), data), (open_stores(mixed), mixed)
    one, two, both = (measure(run, Text(*source, 16, 16), "measuring") for source in sources)
    for field in ("distances", "loss"):
        first, second, found = (getattr(measured, field) for measured in (one, two, both))
        np.testing.assert_allclose(found, 0.75 * first + 0.25 * second, rtol=1e-9)
    assert both.samples == one.samples + two.samples
    assert np.abs(one.distances - two.distances).max() > 1e-3

    blocks = {**run.params["blocks"], "wo_NHD": np.nan * run.params["blocks"]["wo_NHD"]}
    broken = run._replace(params={**run.params, "blocks": blocks})
    with pytest.raises(UserError, match="not finite after 1 of 2 layers"):
        measure(broken, Text(*sources[0], 16, 16), "measuring")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("RUN", "OUT"), "has OUT but no --layers"),
        (("RUN", "--layers", "1"), "has --layers but no OUT"),
        (("RUN", "--simple"), "give OUT and --layers N, too"),
        (("RUN", "--samples", "0"), "--samples is 0; it must be 1 or more"),
        (("RUN", "--batch-size", "-1"), "--batch-size is -1; it must be 1 or more"),
        (("RUN", "--data.sequence-length", "-1"), "must be 0 or more"),
        (("RUN", "RUN", "--layers", "1"), "already exists and is not overwritten"),
        (("RUN", "--html", "RUN/config.json"), "already exists, was not written by this command"),
        (("OUT", "OTHER", "--layers", "1"), "is not a run directory"),
        (("RUN", "OUT", "--layers", "2"), "--layers is 2; 1 to 1 of the model's 2 layers"),
        (("RUN", "OUT", "--layers", "-1"), "--layers is -1"),
        (("RUN",), "records no data, because it was converted, merged or pruned. Give a "),
        (("RUN", "--data.store", "OUT"), "OUT"),
        (("RUN", "--data.store", "STORE"), "STORE is not the run's"),
        (("ADAPTED", "OUT", "--layers", "1"), "complete run of both first: paxlike adapt merge"),
    ],
)
def test_mistakes_get_one_message(config, prune, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN" / "tokenizer").mkdir(parents=True)
    (tmp_path / "ADAPTED").mkdir()
    config = dataclasses.replace(config, data=DataConfig())
    adapted = dataclasses.replace(config, adapt=AdaptConfig("lora"))
    (tmp_path / "RUN" / "config.json").write_text(to_json(config))
    (tmp_path / "ADAPTED" / "config.json").write_text(to_json(adapted))
    if "STORE" in arguments:
        texts = [f"{n} words of text number {n}\n" * 30 for n in range(8)]
        for n, text in enumerate(texts):
            (tmp_path / f"{n}.txt").write_text(text)
        how = {"tokenizer_vocab": 300, "validation_fraction": 0.5}
        prepare(PrepareConfig((f"{tmp_path}/*.txt",), "STORE", tokenizer="sentencepiece", **how))
        BytesTokenizer().save(tmp_path / "RUN" / "tokenizer")
    code, _, err = prune(*arguments)
    assert code == 2 and err.count("paxlike: ") == 1 and "Traceback" not in err
    assert message in err
    assert not (tmp_path / "OUT").exists()
