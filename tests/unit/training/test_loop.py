"""The training loop on small runs: learning, files, errors, and bit-identical resumption."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from paxlike.config import UserError
from paxlike.training import loop
from paxlike.training.loop import train

pytestmark = pytest.mark.slow


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return {line["step"]: line["loss"] for line in lines(folder) if "event" not in line}


@pytest.fixture
def finished(config, tmp_path):
    folder = tmp_path / "whole"
    return folder, train(config, folder)


def test_a_run_learns_and_writes_its_files(finished, config):
    folder, result = finished
    found = losses(folder)
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    assert found[6] < found[1] - 0.5
    assert result.step == 6 and result.stopped_by is None
    events = [line["event"] for line in lines(folder) if "event" in line]
    assert events[0] == "start" and events.count("compile") == 1 and events[-1] == "finish"
    assert result.evaluation["tokens"] == 2 * 8 * 32
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"4", "6"}
    assert (folder / "tokenizer").is_dir() and (folder / "config.json").is_file()


def test_a_resumed_run_is_bit_identical(finished, config, change, tmp_path):
    whole, _ = finished
    parts = tmp_path / "parts"
    train(change(config, "train.steps", 3), parts)
    train(config, parts)
    assert losses(parts) == losses(whole)


def test_a_run_resumes_on_another_mesh(finished, config, change, tmp_path):
    whole, _ = finished
    parts = tmp_path / "parts"
    train(change(config, "train.steps", 3), parts)
    train(change(change(config, "mesh.data", 8), "mesh.model", 1), parts)
    expected, found = losses(whole), losses(parts)
    np.testing.assert_allclose(
        [found[k] for k in sorted(found)], [expected[k] for k in sorted(expected)], rtol=1e-5
    )


def test_a_signal_saves_a_checkpoint_and_the_run_resumes(finished, config, tmp_path, monkeypatch):
    whole, _ = finished
    parts = tmp_path / "parts"
    real = loop._Loop.read_pending

    def interrupting(self):
        if self.pending and self.pending[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self)

    monkeypatch.setattr(loop._Loop, "read_pending", interrupting)
    result = train(config, parts)
    monkeypatch.undo()
    assert result.stopped_by == "SIGTERM" and result.step < 6
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(config, parts)
    assert losses(parts) == losses(whole)


def test_accumulation_and_the_batch_ramp(config, change, tmp_path):
    """Every batch size of the ramp is split into accumulation steps, and compiles once."""
    ramped = change(change(config, "train.batch_ramp", ((4, 2), (8, 4))), "train.batch_size", 16)
    train(change(ramped, "train.accumulate", 2), tmp_path / "a")
    train(ramped, tmp_path / "b")
    a, b = losses(tmp_path / "a"), losses(tmp_path / "b")
    np.testing.assert_allclose([a[k] for k in sorted(a)], [b[k] for k in sorted(b)], rtol=2e-6)
    batches = [line["batch"] for line in lines(tmp_path / "a") if line.get("event") == "compile"]
    assert batches == [[2, 2, 32], [2, 4, 32], [2, 8, 32]]


def test_an_unreadable_checkpoint_is_renamed(finished, config, change, capsys):
    folder, _ = finished
    for file in (folder / "checkpoints" / "6" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    train(change(config, "train.steps", 7), folder)
    out = capsys.readouterr().out
    assert "checkpoint 6 cannot be read" in out and "resuming from step 4" in out
    assert (folder / "checkpoints" / "6.unreadable").is_dir()
    assert max(losses(folder)) == 7


def test_without_a_readable_checkpoint_the_run_fails_and_keeps_all_files(finished, config, change):
    folder, _ = finished
    for file in (folder / "checkpoints").glob("*/state/**/*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint in .* can be read"):
        train(change(config, "train.steps", 7), folder)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        "4.unreadable",
        "6.unreadable",
    }


def test_a_run_directory_of_another_config(finished, config, change):
    folder, _ = finished
    before = (folder / "config.json").read_text()
    with pytest.raises(
        UserError, match=r"belongs to another config: optim.learning_rate: 0.01 -> 0.5"
    ):
        train(change(config, "optim.learning_rate", 0.5), folder)
    assert (folder / "config.json").read_text() == before


def test_a_directory_that_is_not_a_run(config, tmp_path):
    (tmp_path / "letter.txt").write_text("other content")
    with pytest.raises(UserError, match="is not a run directory"):
        train(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "train.batch_size",
            7,
            "B .batch. is 7, which the mesh axis pod 1 x data 2 does not divide",
        ),
        ("mesh.model", 3, "does not fit 8 devices; choose mesh.model among"),
        ("model.vocab_size", 200, "model.vocab_size 200 is smaller than"),
        ("model.heads", 6, "mesh axis model 4 does not divide"),
        ("data.store", "nowhere", "nowhere"),
    ],
)
def test_configuration_errors_are_raised_before_the_run_directory_is_created(
    config, change, tmp_path, name, value, message
):
    with pytest.raises(UserError, match=message):
        train(change(config, name, value), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_in_one_run_directory(finished, config, change):
    folder, _ = finished
    from paxlike.data.store import open_store
    from paxlike.training.run_directory import RunDirectory

    run = RunDirectory(folder, config, open_store(config.data.store))
    with pytest.raises(UserError, match="another process is training in"):
        train(change(config, "train.steps", 7), folder)
    run.close()


def test_a_state_with_a_non_finite_loss_is_never_saved(config, change, tmp_path):
    with pytest.raises(UserError, match="the loss is nan|gradient norm is (nan|inf)"):
        train(
            change(change(config, "optim.learning_rate", 1e30), "optim.clip", 0.0), tmp_path / "run"
        )
    saved = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert "6" not in saved
    assert jax.sharding.get_mesh().empty


def test_checkpoints_are_kept_by_count_and_by_interval(config, change, tmp_path):
    kept = change(
        change(change(config, "checkpoint.every", 1), "checkpoint.keep", 2),
        "checkpoint.keep_every",
        3,
    )
    train(change(kept, "train.steps", 8), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {
        "3",
        "6",
        "7",
        "8",
    }


def test_profile_and_tensorboard(config, change, tmp_path):
    logged = change(
        change(change(config, "profile.start", 2), "profile.steps", 2), "log.tensorboard", True
    )
    train(logged, tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    from tensorboardX.proto.event_pb2 import Event

    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    data, offset, tags = events.read_bytes(), 0, {}
    while offset < len(data):
        length = int.from_bytes(data[offset : offset + 8], "little")
        event = Event.FromString(data[offset + 12 : offset + 12 + length])
        offset += length + 16
        for value in event.summary.value:
            tags.setdefault(value.tag, {})[event.step] = value.simple_value
    assert set(tags["loss"]) == {1, 2, 3, 4, 5, 6}
    np.testing.assert_allclose(
        [tags["loss"][k] for k in range(1, 7)],
        [losses(tmp_path / "run")[k] for k in range(1, 7)],
        rtol=1e-6,
    )
