"""What a resumed run may change, what it warns of, and that a refused start changes nothing."""

import json
import re
import shutil
from pathlib import Path

import pytest

from paxlike.accounting.history import read_history
from paxlike.api.run import open_run
from paxlike.config import UserError
from paxlike.training.accounting import RunAccounting
from paxlike.training.loop import train

pytestmark = pytest.mark.slow


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.steps", 3, "already at step 4, past train.steps 3"),
        ("optim.learning_rate", 9.0, "belongs to another config"),
    ],
)
def test_a_refused_start_changes_no_file(config, change, tmp_path, field, value, message):
    train(change(config, "train.steps", 4), tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        train(change(config, field, value), tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_unreadable_checkpoints_leave_the_config(config, change, tmp_path):
    train(change(config, "train.steps", 4), tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    for path in (tmp_path / "run" / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError):
        train(config, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_moved_store_is_remembered(config, change, tmp_path):
    shutil.copytree(config.data.store, tmp_path / "first")
    train(
        change(change(config, "data.store", str(tmp_path / "first")), "train.steps", 2),
        tmp_path / "run",
    )
    (tmp_path / "first").rename(tmp_path / "second")
    run = open_run(tmp_path / "run")
    with pytest.raises(UserError, match="first"):
        run.evaluate(1)
    given = run.evaluate(1, tmp_path / "second")
    train(change(config, "data.store", str(tmp_path / "second")), tmp_path / "run")
    assert json.loads((tmp_path / "run/data.json").read_text())["store"] == str(tmp_path / "second")
    assert open_run(tmp_path / "run").evaluate(1)["tokens"] == given["tokens"] > 0


def test_a_longer_schedule_that_changes_the_rate_is_warned_of(config, change, tmp_path, capsys):
    cosine = change(config, "optim.schedule", "cosine")
    train(cosine, tmp_path / "run")
    train(change(cosine, "train.steps", 10), tmp_path / "run")
    told = capsys.readouterr().out
    found = re.search(r"learning rate of step 7 is (\S+) instead of (\S+), because", told)
    assert found and float(found[1]) > 3 * float(found[2])
    assert "optim.schedule palm or constant" in told
    train(config, tmp_path / "constant")
    train(change(config, "train.steps", 10), tmp_path / "constant")
    assert "learning rate of step" not in capsys.readouterr().out


def test_the_report_names_a_loss_that_is_not_finite(config, change, tmp_path):
    config = change(change(config, "optim.learning_rate", 1e30), "optim.clip", 0.0)
    with pytest.raises(UserError, match="the loss is"):
        train(config, tmp_path / "run")
    history = read_history(tmp_path / "run")
    (note,) = [note for note in history.notes if "the run failed" in note]
    assert re.search(r"failed at step \d: the loss is .* and the gradient norm is (nan|inf)", note)


def test_a_partial_last_line_is_removed(config, change, tmp_path):
    train(change(config, "train.steps", 2), tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 3, "lo')
    train(change(config, "train.steps", 4), tmp_path / "run")
    assert path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_complete_last_line_without_its_end_is_kept(config, change, tmp_path):
    train(change(config, "train.steps", 2), tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.rstrip(b"\n"))
    train(change(config, "train.steps", 4), tmp_path / "run")
    assert path.read_bytes().startswith(whole)


def test_a_few_steps_give_no_warning_of_their_mfu(config, change, tmp_path, capsys, monkeypatch):
    too_high = lambda self, rate: ({}, "MFU of 169 % is impossible")  # noqa: E731
    monkeypatch.setattr(RunAccounting, "utilization", too_high)
    train(config, tmp_path / "short")
    assert "impossible" not in capsys.readouterr().out
    train(change(config, "train.steps", 24), tmp_path / "long")
    assert capsys.readouterr().out.count("WARNING: MFU of 169 % is impossible") == 1
