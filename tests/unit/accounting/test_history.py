"""Run folders that are damaged, in progress or restarted are read for what is whole, and say so."""

import fcntl
import json
import math

import pytest
from made_runs import booked, start, step, write

from paxlike.accounting.history import read_history
from paxlike.config import UserError

WHOLE = [
    {**start(), "time": 10.0},
    {**step(1, 4.0), "time": 12.0},
    {**step(2, 3.0), "time": 14.0},
    {"event": "evaluation", "step": 2, "loss": 3.25, "time": 20.0},
    {"event": "finish", "step": 2, "goodput": booked(step=4, evaluation=6), "time": 20.0},
]


def notes(folder) -> str:
    return "\n".join(read_history(folder).notes)


def test_a_whole_run_has_no_notes(tmp_path):
    found = read_history(write(tmp_path / "run", WHOLE, name="small", steps=2))
    assert (found.name, found.planned_steps, found.notes, found.running) == ("small", 2, [], False)
    assert found.steps.tolist() == [1, 2] and found.series["loss"].tolist() == [4.0, 3.0]
    assert found.series["mfu"][0] == pytest.approx(500_000 * 6e9 / (16 * 275e12))
    assert found.evaluations == [(2, 3.25)] and found.goodput == booked(step=4, evaluation=6)
    assert [(a.first_step, a.last_step, a.end) for a in found.attempts] == [(0, 2, "finish")]


def test_a_torn_last_line_and_garbled_ones_are_counted(tmp_path):
    garbled = ["not json\n", "[1, 2]\n", '{"loss": 3}\n', '{"step": true}\n', '{"step": 1e400}\n', "\x00\x00\n", "\n"]
    folder = write(tmp_path / "run", [*WHOLE[:2], *garbled, *WHOLE[2:3], '{"step": 3, "loss": 2.'])
    with open(folder / "metrics.jsonl", "rb+") as file:  # bytes that are no UTF-8, in place of one line's text
        text = file.read().replace(b"not json", b"\xff\xfe\xfd\xfc")
        file.seek(0)
        file.write(text)
    found = read_history(folder)
    assert found.steps.tolist() == [1, 2]
    assert "6 lines of metrics.jsonl cannot be read" in notes(folder)
    assert "the last line of metrics.jsonl is cut short" in notes(folder)


def test_a_whole_last_line_without_its_newline_counts(tmp_path):
    folder = write(tmp_path / "run", [*WHOLE[:2], json.dumps(step(2, 2.5))])
    assert read_history(folder).steps.tolist() == [1, 2] and "cut short" not in notes(folder)


def test_values_of_another_kind_are_no_numbers(tmp_path):
    odd = {**step(3), "loss": "nan", "step_seconds": 10**400, "mfu": [1], "tokens_per_second": True}
    folder = write(tmp_path / "run", [*WHOLE[:3], odd])
    found = read_history(folder)
    assert [math.isnan(found.series[name][2]) for name in ("loss", "step_seconds", "mfu", "tokens_per_second")] == [
        True
    ] * 4
    assert "the loss or the gradient norm was not finite at 1 step, first at step 3" in notes(folder)


def test_the_last_line_of_a_step_counts_and_restarts_are_told(tmp_path):
    other = start(1, mesh={"pod": 1, "data": 2, "model": 8})
    folder = write(tmp_path / "run", [*WHOLE[:3], other, step(2, 2.75), *WHOLE[4:]])
    found = read_history(folder)
    assert found.series["loss"].tolist() == [4.0, 2.75] and found.attempt_of.tolist() == [0, 1]
    assert "attempt 2 went on from step 1: the one before ended without a word; 1 step done again" in notes(folder)
    assert "now on 16 x TPU v4, pod 1 x data 2 x model 8" in notes(folder)


def test_a_run_that_a_process_is_training_in(tmp_path):
    folder = write(tmp_path / "run", WHOLE[:3])
    assert "says neither `finish` nor `stop` after step 2" in notes(folder)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_history(folder).running and "the run is in progress" in notes(folder)
    assert not read_history(folder).running
    assert fcntl.flock(open(folder / ".lock"), fcntl.LOCK_EX | fcntl.LOCK_NB) is None  # noqa: SIM115 - reading left it free


def test_a_stopped_run(tmp_path):
    folder = write(
        tmp_path / "run", [*WHOLE[:3], {"event": "stop", "step": 2, "signal": "SIGTERM", "time": 15.0}], steps=9
    )
    assert notes(folder) == "the run was stopped by SIGTERM at step 2 of 9."


def test_a_clock_that_went_backwards_is_told(tmp_path):
    folder = write(tmp_path / "run", [*WHOLE[:2], {**step(2), "time": 3.0}, *WHOLE[4:]])
    assert "the clock went backwards 1 time (" in notes(folder)
    assert min(read_history(folder).goodput.values()) >= 0


@pytest.mark.parametrize(
    "config", [None, "", "[]", '{"name": "x"}', '{"name": 3, "train": {"steps": 5}}', '{"train": {}}']
)
def test_a_config_that_cannot_be_used(tmp_path, config):
    folder = write(tmp_path / "named", WHOLE)
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(config)
    found = read_history(folder)
    assert (found.name, found.planned_steps) == ("named", None) and "config.json cannot be used" in notes(folder)


def test_a_file_without_its_beginning(tmp_path):
    folder = write(tmp_path / "run", WHOLE[1:])
    assert read_history(folder).steps.tolist() == [1, 2] and "the beginning of the file is missing" in notes(folder)


@pytest.mark.parametrize("text", [None, "", "\n\n", '{"step'])
def test_what_is_no_run_is_refused_with_the_way_out(tmp_path, text):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match="Name a folder that" if text is None else "nothing to report. Wait"):
        read_history(tmp_path)
    with pytest.raises(UserError, match="is not there"):
        read_history(tmp_path / "nowhere")
