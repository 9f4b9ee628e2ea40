"""Reading run directories that are damaged, in progress, or resumed."""

import fcntl
import json
import math

import pytest
from sample_runs import recorded, start, step, write

from paxlike.accounting.history import read_history
from paxlike.config import UserError

COMPLETE = [
    {**start(), "time": 10.0},
    {**step(1, 4.0), "time": 12.0},
    {**step(2, 3.0), "time": 14.0},
    {"event": "evaluation", "step": 2, "loss": 3.25, "time": 20.0},
    {"event": "finish", "step": 2, "goodput": recorded(step=4, evaluation=6), "time": 20.0},
]


def notes(folder) -> str:
    return "\n".join(read_history(folder).notes)


def test_complete_run_has_no_notes(tmp_path):
    found = read_history(write(tmp_path / "run", COMPLETE, name="small", steps=2))
    assert (found.name, found.planned_steps, found.notes, found.running) == ("small", 2, [], False)
    assert found.steps.tolist() == [1, 2] and found.series["loss"].tolist() == [4.0, 3.0]
    assert found.series["mfu"][0] == pytest.approx(500_000 * 6e9 / (16 * 275e12))
    assert found.evaluations == [(2, 3.25)] and found.goodput == recorded(step=4, evaluation=6)
    assert [(a.first_step, a.last_step, a.end) for a in found.attempts] == [(0, 2, "finish")]


def test_truncated_and_invalid_lines_are_counted(tmp_path):
    invalid = [
        "not json\n",
        "[1, 2]\n",
        '{"loss": 3}\n',
        '{"step": true}\n',
        '{"step": 1e400}\n',
        "\x00\x00\n",
        "\n",
    ]
    folder = write(
        tmp_path / "run", [*COMPLETE[:2], *invalid, *COMPLETE[2:3], '{"step": 3, "loss": 2.']
    )
    with open(folder / "metrics.jsonl", "rb+") as file:
        text = file.read().replace(b"not json", b"\xff\xfe\xfd\xfc")  # not UTF-8
        file.seek(0)
        file.write(text)
    found = read_history(folder)
    assert found.steps.tolist() == [1, 2]
    assert "6 lines of metrics.jsonl could not be read" in notes(folder)
    assert "the last line of metrics.jsonl is truncated" in notes(folder)


def test_complete_last_line_without_newline_counts(tmp_path):
    folder = write(tmp_path / "run", [*COMPLETE[:2], json.dumps(step(2, 2.5))])
    assert read_history(folder).steps.tolist() == [1, 2] and "truncated" not in notes(folder)


def test_values_of_the_wrong_type_become_nan(tmp_path):
    odd = {**step(3), "loss": "nan", "step_seconds": 10**400, "mfu": [1], "tokens_per_second": True}
    folder = write(tmp_path / "run", [*COMPLETE[:3], odd])
    found = read_history(folder)
    assert [
        math.isnan(found.series[name][2])
        for name in ("loss", "step_seconds", "mfu", "tokens_per_second")
    ] == [True] * 4
    assert "the loss or the gradient norm was not finite at 1 step, first at step 3" in notes(
        folder
    )


def test_last_line_of_a_step_counts_and_restarts_are_noted(tmp_path):
    other = start(1, mesh={"pod": 1, "data": 2, "model": 8})
    folder = write(tmp_path / "run", [*COMPLETE[:3], other, step(2, 2.75), *COMPLETE[4:]])
    found = read_history(folder)
    assert found.series["loss"].tolist() == [4.0, 2.75] and found.attempt_of.tolist() == [0, 1]
    assert (
        "attempt 2 resumed from step 1: the previous attempt did not record its end; "
        "1 step repeated" in notes(folder)
    )
    assert "now on 16 x TPU v4, pod 1 x data 2 x model 8" in notes(folder)


def test_run_in_progress(tmp_path):
    folder = write(tmp_path / "run", COMPLETE[:3])
    assert "recorded no end after step 2" in notes(folder)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_history(folder).running and "the run is in progress" in notes(folder)
    assert not read_history(folder).running
    with open(folder / ".lock") as lock:  # Reading released the lock.
        assert fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB) is None


def test_stopped_run(tmp_path):
    folder = write(
        tmp_path / "run",
        [*COMPLETE[:3], {"event": "stop", "step": 2, "signal": "SIGTERM", "time": 15.0}],
        steps=9,
    )
    assert notes(folder) == "the run was stopped by SIGTERM at step 2 of 9."


def test_clock_jump_is_noted(tmp_path):
    folder = write(tmp_path / "run", [*COMPLETE[:2], {**step(2), "time": 3.0}, *COMPLETE[4:]])
    assert "the clock went backwards 1 time (" in notes(folder)
    assert min(read_history(folder).goodput.values()) >= 0


@pytest.mark.parametrize(
    "config",
    [None, "", "[]", '{"name": "x"}', '{"name": 3, "train": {"steps": 5}}', '{"train": {}}'],
)
def test_invalid_config(tmp_path, config):
    folder = write(tmp_path / "named", COMPLETE)
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(config)
    found = read_history(folder)
    assert (found.name, found.planned_steps) == ("named", None)
    assert "config.json cannot be used" in notes(folder)


def test_missing_beginning(tmp_path):
    folder = write(tmp_path / "run", COMPLETE[1:])
    assert read_history(folder).steps.tolist() == [1, 2]
    assert "the beginning of the file is missing" in notes(folder)


@pytest.mark.parametrize("text", [None, "", "\n\n", '{"step'])
def test_directory_without_a_run_raises_error(tmp_path, text):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(
        UserError, match="Specify a directory" if text is None else "nothing to report. Wait"
    ):
        read_history(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_history(tmp_path / "nowhere")
