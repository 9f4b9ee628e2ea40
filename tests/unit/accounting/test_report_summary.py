"""The figures of a report match hand-computed ones and those of the PaLM paper."""

import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from sample_runs import MIB, recorded, start, step, write

from paxlike.accounting.history import read_history
from paxlike.accounting.report.summary import for_json, from_rate, summarize
from paxlike.accounting.report.table import describe, duration, labels
from paxlike.config import UserError, load

ROOT = Path(__file__).resolve().parents[3]
PALM = load(ROOT / "configs" / "palm_540b.py")


def summary(folder: Path, lines: list, **more) -> dict:
    return summarize(read_history(write(folder, lines, **more)))


def shown(*summaries: dict, width: int = 200) -> str:
    console = Console(width=width, no_color=True, file=None, record=True, quiet=False)
    with console.capture() as captured:
        console.print(describe(list(summaries)))
    return captured.get()


def shares(result: dict) -> dict[str, float]:
    return {f"{s['name']} {s['convention']}": s["fraction"] for s in result["utilization"]}


LINES = [
    {**start(energy_source="a meter"), "time": 0.0},
    {
        "event": "compile",
        "step": 0,
        "memory": {
            "arguments": 100,
            "outputs": 90,
            "temporaries": 50,
            "aliased": 80,
            "code": 7,
        },
    },
    *(
        step(k, 5 - 0.1 * k, seconds, joules=80.0 * k)
        for k, seconds in enumerate([2.0, 2.0, 2.5, 1.6, 4.0], 1)
    ),
    {"event": "evaluation", "step": 3, "loss": 4.75},
    {"event": "evaluation", "step": 5, "loss": 4.8},
    {
        "event": "finish",
        "step": 5,
        "goodput": recorded(step=12.1, compile=6, checkpoint=1.9),
        "device_memory": {"in_use": 120, "peak": 150, "limit": 1000},
        "joules": 500.0,
    },
]


def test_figures_of_a_run(tmp_path):
    result = summary(tmp_path / "run", LINES, steps=5)
    assert result["status"] == "finished" and result["steps"] == {"done": 5, "planned": 5}
    assert result["tokens"] == 5_000_000
    assert result["loss"] == {
        "last": {"step": 5, "loss": 4.5},
        "lowest": {"step": 5, "loss": 4.5},
        "evaluation": {"step": 5, "loss": 4.8},
        "lowest_evaluation": {"step": 3, "loss": 4.75},
    }
    # Percentiles of 1.6, 2, 2, 2.5, 4 by linear interpolation over four gaps: p10 is 0.4 into the
    # first gap, p90 is 0.6 into the last.
    assert result["step_seconds"] == pytest.approx({"median": 2.0, "p10": 1.76, "p90": 3.4})
    assert result["tokens_per_second"]["median"] == 500_000
    assert result["tokens_per_second"]["over_wall_time"] == pytest.approx(5e6 / 20)
    assert (
        result["goodput"]["fraction"] == pytest.approx(0.605)
        and result["goodput"]["wall_seconds"] == 20
    )
    per_peak = 500_000 / (16 * 275e12)
    assert shares(result) == pytest.approx(
        {
            "MFU palm": 6e9 * per_peak,
            "MFU palm_no_embedding": 5.5e9 * per_peak,
            "MFU causal": 5.7e9 * per_peak,
            "HFU executed, splash attention, remat full": 7.2e9 * per_peak,
            "HFU (PaLM formula) palm + remat full": 8e9 * per_peak,
        }
    )
    assert result["memory"]["plan"]["total"] == 6200 * MIB
    assert (
        result["memory"]["compiled"]["peak"] == 100 + 90 + 50 - 80
        and result["memory"]["device"]["peak"] == 150
    )
    assert result["energy"] == {"joules": 500.0, "joules_per_token": 1e-4, "source": "a meter"}
    assert result["notes"] == [] and result["warnings"] == []


def test_table_shows_formula_and_peak_of_every_percentage(tmp_path):
    text = shown(summary(tmp_path / "run", LINES), from_rate(PALM, 238_300, "v4", 6144))
    for expected in (
        "MFU 68.2% = 500,000 tokens/s x 0.006 TFLOP/token (palm: 6N + 12LHQT) / "
        "(16 chips x 275 TFLOP/s)",
        "peak: 275 TFLOP/s dense bfloat16 per TPU v4 (a data sheet)",
        "HFU 57.8% = 238,300 tokens/s x 4.1 TFLOP/token (palm + remat palm: ",
        "2 s  (1.76 s … 3.4 s)",
        "12.1 s  (60.5%)",
        "3.900 GFLOP  (54.2%)",
        "0.0001 J",
        "4.8000 at step 5",
    ):
        assert expected in text, expected
    assert "nan" not in text.lower() and "None" not in text


def test_given_rate_reproduces_the_papers_percentages():
    result = from_rate(PALM, 238_300, "v4", 6144)
    printed = {name: f"{100 * share:.1f}" for name, share in shares(result).items()}
    assert printed["MFU palm"] == "46.2" and printed["MFU palm without attention"] == "45.7"
    assert printed["HFU palm + remat palm"] == "57.8" and result["warnings"] == []
    assert all(
        share["formula"].count("275 TFLOP/s") and "TPU v4" in share["peak"]
        for share in result["utilization"]
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((238_300, "v44", 6144), "no chip 'v44' in the hardware table; it has v2, v3"),
        ((0, "v4", 6144), "tokens per second is 0"),
        ((238_300, "v4", -1), "chips is -1"),
        ((math.nan, "v4", 1), "tokens per second is nan"),
        ((math.inf, "v4", 1), "must be finite"),
        ((1e5, "v4", 1, "float8"), "no peak for float8"),
    ],
)
def test_invalid_rates_raise(given, message):
    with pytest.raises(UserError, match=message):
        from_rate(PALM, *given)


def test_utilization_above_the_peak_warns_once(tmp_path):
    result = from_rate(PALM, 238_300 * 2, "v4", 6144)
    assert len(result["warnings"]) == 1
    assert result["warnings"][0].startswith("HFU of 115.7% is impossible")
    assert "WARNING (palm-540b): HFU of 115.7%" in shown(result)
    # MFU 90.9 %, HFU 109.1 %. The duration of a few steps can be far too short.
    for steps, warnings in ((20, 1), (19, 0)):
        lines = [start(), *(step(k, seconds=1.5) for k in range(1, steps + 1))]
        assert len(summary(tmp_path / str(steps), lines)["warnings"]) == warnings


def test_speeds_exclude_steps_on_another_mesh(tmp_path):
    """Two steps on 16 chips, then three on 8 at half the speed: speeds cover only the three."""
    half = start(2, chips=8.0, devices=8, mesh={"pod": 1, "data": 2, "model": 4})
    lines = [start(), step(1), step(2), half, *(step(k, seconds=4.0) for k in (3, 4, 5))]
    result = summary(tmp_path / "run", lines)
    assert result["step_seconds"]["median"] == 4.0 and result["tokens"] == 5_000_000
    assert shares(result)["MFU palm"] == pytest.approx(250_000 * 6e9 / (8 * 275e12))
    note = "speeds cover the 3 steps on the last attempt's mesh"
    assert any(note in line for line in result["notes"])


def test_measured_cpu_peaks_do_not_separate_attempts(tmp_path):
    cpu = {"device": "cpu", "devices": 1}
    lines = [start(**cpu, peak=1e11), step(1), start(1, **cpu, peak=1.1e11), step(2)]
    assert not any(
        "last attempt's mesh" in note for note in summary(tmp_path / "run", lines)["notes"]
    )


@pytest.mark.parametrize(
    "damage",
    [
        {"peak": None},
        {"chips": 0},
        {"chip": None},
        {"chip": 3},
        {"flops_per_token": 3},
        {"flops_per_token": {"model": []}},
        {"peak": "much"},
        {"flops_per_token": {"model": {"palm": {"name": "palm", "formula": "6N", "total": 0}}}},
    ],
)
def test_invalid_start_event_only_removes_utilization(tmp_path, damage):
    result = summary(tmp_path / "run", [start(**damage), step(1)])
    assert result["utilization"] == [] and any(
        note.startswith("no MFU: ") for note in result["notes"]
    )
    assert result["tokens_per_second"]["median"] == 500_000 and "500,000" in shown(result)


def test_run_without_steps(tmp_path):
    result = summary(tmp_path / "run", [start(mesh=5, memory_plan={"a": "b"})])
    assert (
        result["step_seconds"] is None
        and result["steps"]["done"] == 0
        and result["loss"]["last"] is None
    )
    assert "not finished" in shown(result)


def test_energy_is_scaled_to_unmeasured_devices_with_a_note(tmp_path):
    result = summary(tmp_path / "run", [start(energy_devices=4), step(1, joules=10.0)])
    assert result["energy"]["joules"] == 40 and any(
        "scaled to all 16" in note for note in result["notes"]
    )


def test_json_has_no_nan_and_equal_keys_for_runs_and_rates(tmp_path):
    odd = {**step(2), "loss": "nan", "step_seconds": "inf"}
    made = summary(tmp_path / "run", [start(mesh={"data": math.inf}), step(1), odd])
    result = for_json([made, from_rate(PALM, 238_300, "v4", 6144)])
    text = json.dumps(result, allow_nan=False)
    assert json.loads(text)["format"] == 1
    assert result["runs"][0].keys() == result["runs"][1].keys() and result["runs"][0]["mesh"] == {
        "data": None
    }


def test_labels_and_durations():
    run = lambda folder: {"folder": folder, "name": "x"}  # noqa: E731
    assert labels([run("runs/a"), run("b/")]) == ["a", "b"]
    assert labels([run("one/a"), run("two/a")]) == ["one/a", "two/a"]
    assert [duration(s) for s in (0, 0.0123, 1.234, 59.9, 61, 90_000)] == [
        "0 s",
        "12.3 ms",
        "1.23 s",
        "59.9 s",
        "0:01:01",
        "1 day, 1:00:00",
    ]
