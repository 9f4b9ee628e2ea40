"""The accounting that the loop writes for the report: formula inputs, memory, goodput, energy."""

import json

import pytest

from paxlike.accounting.executed_flops import executed_flops
from paxlike.accounting.flops import hardware_flops, model_flops
from paxlike.accounting.history import read_history
from paxlike.accounting.memory import memory_estimate
from paxlike.accounting.report.summary import summarize
from paxlike.accounting.throughput import CAUSES, Goodput
from paxlike.config import UserError
from paxlike.training import accounting, loop
from paxlike.training.loop import train


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder, name):
    return [line for line in lines(folder) if line.get("event") == name]


@pytest.mark.slow
def test_formula_inputs_and_program_memory_are_written(config, tmp_path):
    train(config, tmp_path / "run")
    (start,) = events(tmp_path / "run", "start")
    flops, model, T = start["flops_per_token"], config.model, 32
    for name in ("palm", "palm_no_embedding", "causal"):
        assert flops["model"][name]["total"] == model_flops(model, T, name).total
    assert flops["executed"]["total"] == executed_flops(model, T, "blocked").total
    assert flops["hardware"]["total"] == hardware_flops(model, T).total
    assert sum(flops["by_part"].values()) == pytest.approx(flops["executed"]["total"])
    plan = memory_estimate(config, 8, compute="float32", kernel="flash")
    assert start["memory_plan"] == {part.name: part.bytes for part in plan.parts}
    assert start["chips"] == 1 and start["peak"] > 0 and start["chip"]["dtype"] == "float32"

    steps = [line for line in lines(tmp_path / "run") if "event" not in line]
    for line in steps:
        assert line["hfu"] == pytest.approx(
            line["tokens_per_second"] * flops["executed"]["total"] / start["peak"]
        )
        assert line["mfu"] == pytest.approx(
            line["tokens_per_second"] * flops["model"]["palm"]["total"] / start["peak"]
        )

    # The arguments include at least this device's shard of parameters and moments, which the step
    # overwrites in place.
    memory = events(tmp_path / "run", "compile")[0]["memory"]
    plan = start["memory_plan"]
    assert memory["arguments"] >= plan["parameters"] + plan["optimizer state"]
    assert memory["arguments"] < 2 * (plan["parameters"] + plan["optimizer state"])
    assert 0 < memory["aliased"] <= memory["outputs"] and memory["temporaries"] > 0


class Device:
    def __init__(self, **stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats or None


def test_memory_in_use_is_that_of_the_fullest_device(monkeypatch):
    devices = [
        Device(bytes_in_use=5, peak_bytes_in_use=9, bytes_limit=100),
        Device(bytes_in_use=1, peak_bytes_in_use=30),
    ]
    monkeypatch.setattr(accounting.jax, "local_devices", lambda: devices)
    assert accounting.device_memory() == {"in_use": 1, "peak": 30}
    monkeypatch.setattr(accounting.jax, "local_devices", lambda: [Device()])
    assert accounting.device_memory() == {}


def shift_times_back(folder, seconds):
    """Makes every line of a run older by `seconds`."""
    shifted = [{**line, "time": line["time"] - seconds} for line in lines(folder)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in shifted))


@pytest.mark.slow
def test_goodput_accumulates_over_attempts_and_sums_to_the_wall_time(
    config, change, tmp_path, monkeypatch
):
    """Three attempts: one fails in step 6 after the checkpoint of step 4, the next two succeed."""
    folder = tmp_path / "run"
    long = change(config, "train.steps", 9)
    real = loop._Loop.read_pending

    def failing(self):
        if self.pending and self.pending[0] == 6:
            raise MemoryError("killed")
        real(self)

    monkeypatch.setattr(loop._Loop, "read_pending", failing)
    with pytest.raises(MemoryError):
        train(long, folder)
    monkeypatch.undo()
    shift_times_back(folder, 1000.0)
    train(change(long, "train.steps", 8), folder)
    shift_times_back(folder, 3000.0)
    train(long, folder)

    written = lines(folder)
    starts = [k for k, line in enumerate(written) if line.get("event") == "start"]
    assert [written[k]["step"] for k in starts] == [0, 4, 8]
    lost = sum(
        line["step_seconds"]
        for line in written[: starts[1]]
        if "event" not in line and line["step"] > 4
    )
    final = written[-1]["goodput"]
    assert lost > 0 and final["repeated steps"] == pytest.approx(lost, abs=0.01)
    gaps = sum(written[k]["time"] - written[k - 1]["time"] for k in starts[1:])
    # The gaps are long compared with the delay between reading the clock and writing a line.
    assert gaps > 4000 and final["restart"] == pytest.approx(gaps, abs=50)
    begin = written[0]["time"] - sum(written[0]["goodput"].values())
    assert sum(final.values()) == pytest.approx(written[-1]["time"] - begin, abs=50)
    for before, after in zip(written, written[1:], strict=False):
        if "goodput" in before and "goodput" in after and after.get("event") != "start":
            assert all(
                after["goodput"][cause] >= seconds for cause, seconds in before["goodput"].items()
            )
    assert read_history(folder).goodput == final

    summary = summarize(read_history(folder))
    assert [a["end"] for a in summary["attempts"]] == [None, "finish", "finish"]
    assert summary["steps"]["done"] == 9 and summary["tokens"] == 9 * 8 * 32


def test_waiting_for_a_step_before_a_checkpoint_counts_as_step_time(
    config, change, tmp_path, monkeypatch
):
    """With a checkpoint after every step, each step's metrics are read when it is saved.

    None of that time may count as `other`. A fake clock advances by 10 s whenever the loop waits
    for a step's metrics, and only then.
    """
    now, get = [0], loop.jax.device_get

    def waiting(numbers):
        now[0] += 10_000_000_000
        return get(numbers)

    monkeypatch.setattr(accounting, "Goodput", lambda: Goodput(lambda: now[0]))
    monkeypatch.setattr(loop.jax, "device_get", waiting)
    monkeypatch.setattr(loop._Loop, "evaluate", lambda self, state, step: {})
    train(change(config, "checkpoint.every", 1), tmp_path / "run")
    goodput = lines(tmp_path / "run")[-1]["goodput"]
    assert goodput == {**dict.fromkeys(CAUSES, 0.0), "step": 10.0 * config.train.steps}


def test_joules_are_written_if_the_hardware_reports_them(config, change, tmp_path, monkeypatch):
    class Meter:
        source, joules, failed, closed = type("S", (), {"name": "fake"}), 0.0, False, False

        def __init__(self, source):
            made.append(self)

        def close(self):
            self.closed = True

        def __getattribute__(self, name):
            if name == "joules":
                type(self).joules = object.__getattribute__(self, "joules") + 2.0
            return object.__getattribute__(self, name)

    made = []
    monkeypatch.setattr(accounting, "energy_source", lambda platform: "a source")
    monkeypatch.setattr(accounting, "EnergyMeter", Meter)
    train(change(config, "train.steps", 2), tmp_path / "run")
    energy = summarize(read_history(tmp_path / "run"))["energy"]
    assert energy["source"] == "fake"
    assert energy["joules_per_token"] == energy["joules"] / (2 * 8 * 32) > 0
    assert made[0].closed


def test_a_diverged_run_can_still_be_summarized(config, change, tmp_path):
    with pytest.raises(UserError, match="the loss is"):
        train(
            change(change(config, "optim.learning_rate", 1e30), "optim.clip", 0.0), tmp_path / "run"
        )
    summary = summarize(read_history(tmp_path / "run"))
    assert summary["status"] == "not finished"
    assert any("not finite" in note for note in summary["notes"])
