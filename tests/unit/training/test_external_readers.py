"""A run's files, read by the tools that they are for: TensorBoard, xprof, Weights & Biases."""

import json
import shutil
import struct
import sys

import numpy as np
import pytest

from paxlike.config import UserError
from paxlike.training import metrics
from paxlike.training.loop import train

pytestmark = pytest.mark.slow


def written(folder) -> tuple[dict, list]:
    """Returns {step: its last line} and the events of metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "event" not in line}, [
        line for line in lines if "event" in line
    ]


@pytest.fixture
def restarted(config, change, tmp_path):
    """restarted(**log_fields) trains 8 steps, losing the fifth and repeating it after a restart."""

    def run(**fields):
        logged = config
        for name, value in fields.items():
            logged = change(logged, f"log.{name}", value)
        folder = tmp_path / "run"
        train(change(logged, "train.steps", 5), folder)
        shutil.rmtree(folder / "checkpoints" / "5")
        train(change(logged, "train.steps", 8), folder)
        return folder

    return run


def test_tensorboard_shows_the_run(restarted):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = restarted(tensorboard=True, every=1)
    shown = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    steps, events = written(folder)
    assert sorted(steps) == list(range(1, 9))
    tags = set(shown.Tags()["scalars"])
    numbers = {name for name, value in steps[8].items() if isinstance(value, float)} - {"time"}
    assert (
        {tag for tag in tags if "/" not in tag}
        == numbers
        >= {"loss", "learning_rate", "tokens_per_second", "mfu"}
    )
    for name in numbers:
        found = {point.step: point.value for point in shown.Scalars(name)}
        assert found == {step: float(np.float32(line[name])) for step, line in steps.items()}, name
        assert [point.step for point in shown.Scalars(name)] == list(range(1, 9)), (
            "step 5 is shown once"
        )
    (evaluation,) = [
        event for event in events if event["event"] == "evaluation" and event["step"] == 8
    ]
    assert [(p.step, p.value) for p in shown.Scalars("evaluation/loss")][-1] == (
        8,
        float(np.float32(evaluation["loss"])),
    )
    assert abs(shown.Scalars("loss")[0].wall_time - steps[1]["time"]) < 5


def test_tensorboard_shows_every_nth_step(config, change, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(change(change(config, "log.tensorboard", True), "log.every", 3), tmp_path / "run")
    shown = EventAccumulator(
        str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0}
    ).Reload()
    assert [point.step for point in shown.Scalars("loss")] == [3, 6]


@pytest.mark.optional("xprof")
def test_xprof_shows_the_steps_of_a_profile(config, change, tmp_path):
    from xprof.convert.raw_to_tool_data import xspace_to_tool_data, xspace_to_tool_names

    train(change(change(config, "profile.start", 2), "profile.steps", 3), tmp_path / "run")
    traces = [str(path) for path in (tmp_path / "run" / "profile").rglob("*.xplane.pb")]
    assert {"overview_page", "trace_viewer@", "memory_viewer"} <= set(xspace_to_tool_names(traces))

    def tool(name: str):
        data, kind = xspace_to_tool_data(traces, name, {})
        assert kind == "application/json"
        return json.loads(data)

    tables = [table for table in tool("input_pipeline_analyzer") if table["cols"]]
    (by_step,) = [table for table in tables if table["cols"][0]["id"] == "stepnum"]
    assert [row["c"][0]["v"] for row in by_step["rows"]] == ["train 3", "train 4", "train 5"]
    assert "No step marker observed" not in json.dumps(tool("overview_page"))
    names = [event.get("name") for event in tool("trace_viewer@")["traceEvents"]]
    assert [f"train {step}" in names for step in (2, 3, 4, 5, 6)] == [
        False,
        True,
        True,
        True,
        False,
    ]


def wandb_records(path):
    """Yields the records of a local wandb file.

    The file is a 7-byte header and a log of 32 KiB blocks. Records are split at block boundaries.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, offset, parts = path.read_bytes(), 7, []
    assert data[:4] == b":W&B"
    while offset + 7 <= len(data):
        if (left := 32768 - offset % 32768) < 7:
            offset += left
            continue
        _, size, kind = struct.unpack("<IHB", data[offset : offset + 7])
        parts.append(data[offset + 7 : offset + 7 + size])
        offset += 7 + size
        if kind in (1, 4):  # a complete record, or its last part
            yield Record.FromString(b"".join(parts))
            parts = []


@pytest.mark.optional("wandb")
def test_wandb_shows_the_run(restarted, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = restarted(wandb=True, every=1)
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    rows, runs = [], []
    for path in files:
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append(
                    {
                        item.key or ".".join(item.nested_key): json.loads(item.value_json)
                        for item in items
                    }
                )
            elif record.WhichOneof("record_type") == "run":
                runs.append(record.run)
    assert {run.run_id for run in runs} == {(folder / "wandb.id").read_text()}, (
        "after a restart it is the same run"
    )
    assert {(run.project, run.display_name) for run in runs} == {("paxlike", "unit")}
    settings = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert settings["train"]["steps"] == 5 and settings["model"]["d_model"] == 32
    steps, events = written(folder)
    found = {row["step"]: row for row in rows if "loss" in row}
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    for step, line in steps.items():
        assert {name: found[step][name] for name in ("loss", "learning_rate", "tokens")} == {
            name: line[name] for name in ("loss", "learning_rate", "tokens")
        }
    (evaluation,) = [
        event["loss"] for event in events if event["event"] == "evaluation" and event["step"] == 8
    ]
    assert [
        row["evaluation/loss"] for row in rows if "evaluation/loss" in row and row["step"] == 8
    ] == [evaluation]


def test_the_error_without_wandb_names_the_extra(config, change, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UserError, match=r"wandb is not installed: `pip install 'paxlike\[wandb\]'`"
    ):
        metrics._wandb(tmp_path, tmp_path, config)
