"""What the loop writes for the report: formula inputs, memory, wall time over restarts."""

import json

import pytest

from paxlike.accounting.flops import executed_flops, hardware_flops, model_flops
from paxlike.accounting.history import read_history
from paxlike.accounting.memory import memory_estimate
from paxlike.accounting.report.summary import summarize
from paxlike.accounting.throughput import CAUSES, Goodput
from paxlike.config import UserError
from paxlike.train import accounts, loop
from paxlike.train.loop import train


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def of(folder, name):
    return [line for line in lines(folder) if line.get("event") == name]


def test_the_inputs_of_every_formula_and_the_programs_memory_are_written(config, tmp_path):
    train(config, tmp_path / "run")
    (start,) = of(tmp_path / "run", "start")
    told, model, T = start["flops_per_token"], config.model, 32
    for name in ("palm", "palm_no_embedding", "causal"):
        assert told["model"][name]["total"] == model_flops(model, T, name).total
    assert told["executed"]["total"] == executed_flops(model, T, "blocked").total
    assert told["hardware"]["total"] == hardware_flops(model, T).total
    assert sum(told["by_part"].values()) == pytest.approx(told["executed"]["total"])
    plan = memory_estimate(config, 8, compute="float32", kernel="flash")
    assert start["memory_plan"] == {part.name: part.bytes for part in plan.parts}
    assert start["chips"] == 1 and start["peak"] > 0 and start["chip"]["dtype"] == "float32"

    steps = [line for line in lines(tmp_path / "run") if "event" not in line]
    for line in steps:
        assert line["hfu"] == pytest.approx(line["tokens_per_second"] * told["executed"]["total"] / start["peak"])
        assert line["mfu"] == pytest.approx(line["tokens_per_second"] * told["model"]["palm"]["total"] / start["peak"])

    # Arguments hold at least this device's share of parameters and moments; the step overwrites them in place.
    memory = of(tmp_path / "run", "compile")[0]["memory"]
    plan = start["memory_plan"]
    assert memory["arguments"] >= plan["parameters"] + plan["optimizer state"]
    assert memory["arguments"] < 2 * (plan["parameters"] + plan["optimizer state"])
    assert 0 < memory["aliased"] <= memory["outputs"] and memory["temporaries"] > 0


class Device:
    def __init__(self, **stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats or None


def test_memory_in_use_is_of_the_fullest_device(monkeypatch):
    devices = [
        Device(bytes_in_use=5, peak_bytes_in_use=9, bytes_limit=100),
        Device(bytes_in_use=1, peak_bytes_in_use=30),
    ]
    monkeypatch.setattr(accounts.jax, "local_devices", lambda: devices)
    assert accounts.device_memory() == {"in_use": 1, "peak": 30}
    monkeypatch.setattr(accounts.jax, "local_devices", lambda: [Device()])
    assert accounts.device_memory() == {}


def earlier(folder, seconds):
    """Makes everything that a run has written as much older."""
    told = [{**line, "time": line["time"] - seconds} for line in lines(folder)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))


def test_goodput_goes_on_over_attempts_and_adds_up_to_the_wall_time(config, change, tmp_path, monkeypatch):
    """Three attempts: one dies in step 6 after the checkpoint of step 4, the next two end well."""
    folder = tmp_path / "run"
    long = change(config, "train.steps", 9)
    real = loop._Loop.read_pending

    def dying(self):
        if self.pending and self.pending[0] == 6:
            raise MemoryError("killed")
        real(self)

    monkeypatch.setattr(loop._Loop, "read_pending", dying)
    with pytest.raises(MemoryError):
        train(long, folder)
    monkeypatch.undo()
    earlier(folder, 1000.0)
    train(change(long, "train.steps", 8), folder)
    earlier(folder, 3000.0)
    train(long, folder)

    told = lines(folder)
    starts = [k for k, line in enumerate(told) if line.get("event") == "start"]
    assert [told[k]["step"] for k in starts] == [0, 4, 8]
    lost = sum(line["step_seconds"] for line in told[: starts[1]] if "event" not in line and line["step"] > 4)
    final = told[-1]["goodput"]
    assert lost > 0 and final["repeated steps"] == pytest.approx(lost, abs=0.01)
    gaps = sum(told[k]["time"] - told[k - 1]["time"] for k in starts[1:])
    # The gaps are long, so that the little that passes between a look at the clock and a line's being written is nothing beside them.
    assert gaps > 4000 and final["restart"] == pytest.approx(gaps, abs=50)
    begun = told[0]["time"] - sum(told[0]["goodput"].values())
    assert sum(final.values()) == pytest.approx(told[-1]["time"] - begun, abs=50)
    for before, after in zip(told, told[1:], strict=False):
        if "goodput" in before and "goodput" in after and after.get("event") != "start":
            assert all(after["goodput"][cause] >= seconds for cause, seconds in before["goodput"].items())
    assert read_history(folder).goodput == final

    summary = summarize(read_history(folder))
    assert [a["end"] for a in summary["attempts"]] == [None, "finish", "finish"]
    assert summary["steps"]["done"] == 9 and summary["tokens"] == 9 * 8 * 32


def test_waiting_for_a_step_is_the_steps_time_also_before_a_checkpoint(config, change, tmp_path, monkeypatch):
    """With a checkpoint after every step, every step is read when it is saved: none of that is `other`.

    On a clock of its own, which goes on by 10 s whenever the numbers of a step are waited for and never else.
    """
    now, get = [0], loop.jax.device_get

    def waiting(numbers):
        now[0] += 10_000_000_000
        return get(numbers)

    monkeypatch.setattr(accounts, "Goodput", lambda: Goodput(lambda: now[0]))
    monkeypatch.setattr(loop.jax, "device_get", waiting)
    monkeypatch.setattr(loop._Loop, "evaluate", lambda self, state, step: {})
    train(change(config, "checkpoint.every", 1), tmp_path / "run")
    told = lines(tmp_path / "run")[-1]["goodput"]
    assert told == {**dict.fromkeys(CAUSES, 0.0), "step": 10.0 * config.train.steps}


def test_joules_are_written_where_the_machine_tells(config, change, tmp_path, monkeypatch):
    class Meter:
        source, joules, failed, closed = (
            accounts.source_here("tpu") or type("S", (), {"name": "fake"}),
            0.0,
            False,
            False,
        )

        def __init__(self, source):
            made.append(self)

        def close(self):
            self.closed = True

        def __getattribute__(self, name):
            if name == "joules":
                type(self).joules = object.__getattribute__(self, "joules") + 2.0
            return object.__getattribute__(self, name)

    made = []
    monkeypatch.setattr(accounts, "source_here", lambda platform: "a source")
    monkeypatch.setattr(accounts, "EnergyMeter", Meter)
    train(change(config, "train.steps", 2), tmp_path / "run")
    told = summarize(read_history(tmp_path / "run"))["energy"]
    assert told["source"] == "fake" and told["joules_per_token"] == told["joules"] / (2 * 8 * 32) > 0
    assert made[0].closed


def test_a_run_that_diverges_keeps_its_accounts(config, change, tmp_path):
    with pytest.raises(UserError, match="the loss is"):
        train(change(change(config, "optim.learning_rate", 1e30), "optim.clip", 0.0), tmp_path / "run")
    told = summarize(read_history(tmp_path / "run"))
    assert told["status"] == "not finished" and any("not finite" in note for note in told["notes"])
