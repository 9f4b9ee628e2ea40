"""The figures of a report against ones worked out by hand, and the paper's; the table shows them with formula and peak."""

import json
import math
from pathlib import Path

import pytest
from made_runs import MIB, booked, start, step, write
from rich.console import Console

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


def shares(told: dict) -> dict[str, float]:
    return {f"{s['name']} {s['convention']}": s["fraction"] for s in told["utilization"]}


ENOUGH = [
    {**start(energy_source="a meter"), "time": 0.0},
    {"event": "compile", "step": 0, "memory": {"arguments": 100, "outputs": 90, "temporaries": 50, "aliased": 80, "code": 7}},
    *(step(k, 5 - 0.1 * k, seconds, joules=80.0 * k) for k, seconds in enumerate([2.0, 2.0, 2.5, 1.6, 4.0], 1)),
    {"event": "evaluation", "step": 3, "loss": 4.75},
    {"event": "evaluation", "step": 5, "loss": 4.8},
    {
        "event": "finish", "step": 5, "goodput": booked(step=12.1, compile=6, checkpoint=1.9),
        "device_memory": {"in_use": 120, "peak": 150, "limit": 1000}, "joules": 500.0,
    },
]  # fmt: skip


def test_a_runs_figures(tmp_path):
    told = summary(tmp_path / "run", ENOUGH, steps=5)
    assert told["status"] == "finished" and told["steps"] == {"done": 5, "planned": 5}
    assert told["tokens"] == 5_000_000
    assert told["loss"] == {
        "last": {"step": 5, "loss": 4.5}, "lowest": {"step": 5, "loss": 4.5},
        "evaluation": {"step": 5, "loss": 4.8}, "lowest_evaluation": {"step": 3, "loss": 4.75},
    }  # fmt: skip
    # Of 1.6, 2, 2, 2.5, 4: the median is 2; a tenth of the way along the four gaps lies 0.4 of the first, 0.6 of the last.
    assert told["step_seconds"] == pytest.approx({"median": 2.0, "p10": 1.76, "p90": 3.4})
    assert told["tokens_per_second"]["median"] == 500_000
    assert told["tokens_per_second"]["over_wall_time"] == pytest.approx(5e6 / 20)
    assert told["goodput"]["fraction"] == pytest.approx(0.605) and told["goodput"]["wall_seconds"] == 20
    per_peak = 500_000 / (16 * 275e12)
    assert shares(told) == pytest.approx({
        "MFU palm": 6e9 * per_peak, "MFU palm_no_embedding": 5.5e9 * per_peak, "MFU causal": 5.7e9 * per_peak,
        "HFU executed, splash attention, remat full": 7.2e9 * per_peak, "HFU as PaLM counts palm + remat full": 8e9 * per_peak,
    })  # fmt: skip
    assert told["memory"]["plan"]["total"] == 6200 * MIB
    assert told["memory"]["compiled"]["peak"] == 100 + 90 + 50 - 80 and told["memory"]["device"]["peak"] == 150
    assert told["energy"] == {"joules": 500.0, "joules_per_token": 1e-4, "source": "a meter"}
    assert told["notes"] == [] and told["warnings"] == []


def test_the_table_shows_formula_and_peak_of_every_percentage(tmp_path):
    text = shown(summary(tmp_path / "run", ENOUGH), from_rate(PALM, 238_300, "v4", 6144))
    for expected in (
        "MFU 68.2% = 500,000 tokens/s x 0.006 TFLOP/token (palm: 6N + 12LHQT) / (16 chips x 275 TFLOP/s)",
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


def test_the_papers_percentages_from_plain_numbers():
    told = from_rate(PALM, 238_300, "v4", 6144)
    printed = {name: f"{100 * share:.1f}" for name, share in shares(told).items()}
    assert printed["MFU palm"] == "46.2" and printed["MFU palm without attention"] == "45.7"
    assert printed["HFU palm + remat palm"] == "57.8" and told["warnings"] == []
    assert all(share["formula"].count("275 TFLOP/s") and "TPU v4" in share["peak"] for share in told["utilization"])


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
def test_plain_numbers_that_mean_nothing_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        from_rate(PALM, *given)


def test_a_figure_above_the_peak_is_warned_of_once(tmp_path):
    told = from_rate(PALM, 238_300 * 2, "v4", 6144)
    assert len(told["warnings"]) == 1 and told["warnings"][0].startswith("HFU of 115.7% cannot be")
    assert "WARNING (palm-540b): HFU of 115.7%" in shown(told)
    assert len(summary(tmp_path / "run", [start(), step(1, seconds=1.5)])["warnings"]) == 1  # MFU 90.9 %, HFU 109.1 %


def test_speeds_of_another_mesh_are_not_mixed_in(tmp_path):
    """Two steps on 16 chips, three on 8 at half the speed: only those make the median, and the note says so."""
    half = start(2, chips=8.0, devices=8, mesh={"pod": 1, "data": 2, "model": 4})
    lines = [start(), step(1), step(2), half, *(step(k, seconds=4.0) for k in (3, 4, 5))]
    told = summary(tmp_path / "run", lines)
    assert told["step_seconds"]["median"] == 4.0 and told["tokens"] == 5_000_000
    assert shares(told)["MFU palm"] == pytest.approx(250_000 * 6e9 / (8 * 275e12))
    assert any("speeds are of 3 steps on the last attempt's mesh" in note for note in told["notes"])


def test_a_measured_peak_that_differs_between_starts_is_one_setting(tmp_path):
    cpu = {"device": "cpu", "devices": 1}
    lines = [start(**cpu, peak=1e11), step(1), start(1, **cpu, peak=1.1e11), step(2)]
    assert not any("last attempt's mesh" in note for note in summary(tmp_path / "run", lines)["notes"])


@pytest.mark.parametrize(
    "damage",
    [
        {"peak": None}, {"chips": 0}, {"chip": None}, {"chip": 3}, {"flops_per_token": 3}, {"flops_per_token": {"model": []}},
        {"peak": "much"}, {"flops_per_token": {"model": {"palm": {"name": "palm", "formula": "6N", "total": 0}}}},
    ],
)  # fmt: skip
def test_a_start_event_that_says_too_little_costs_only_its_figures(tmp_path, damage):
    told = summary(tmp_path / "run", [start(**damage), step(1)])
    assert told["utilization"] == [] and any(note.startswith("no MFU: ") for note in told["notes"])
    assert told["tokens_per_second"]["median"] == 500_000 and "500,000" in shown(told)


def test_a_run_that_has_only_begun(tmp_path):
    told = summary(tmp_path / "run", [start(mesh=5, memory_plan={"a": "b"})])
    assert told["step_seconds"] is None and told["steps"]["done"] == 0 and told["loss"]["last"] is None
    assert "not finished" in shown(told)


def test_energy_of_devices_that_were_not_measured_is_scaled_and_said(tmp_path):
    told = summary(tmp_path / "run", [start(energy_devices=4), step(1, joules=10.0)])
    assert told["energy"]["joules"] == 40 and any("scaled to all 16" in note for note in told["notes"])


def test_json_has_no_nan_and_the_same_keys_for_runs_and_rates(tmp_path):
    odd = {**step(2), "loss": "nan", "step_seconds": "inf"}
    made = summary(tmp_path / "run", [start(mesh={"data": math.inf}), step(1), odd])
    told = for_json([made, from_rate(PALM, 238_300, "v4", 6144)])
    text = json.dumps(told, allow_nan=False)
    assert json.loads(text)["format"] == 1
    assert told["runs"][0].keys() == told["runs"][1].keys() and told["runs"][0]["mesh"] == {"data": None}


def test_names_and_durations():
    run = lambda folder: {"folder": folder, "name": "x"}  # noqa: E731
    assert labels([run("runs/a"), run("b/")]) == ["a", "b"]
    assert labels([run("one/a"), run("two/a")]) == ["one/a", "two/a"]
    assert [duration(s) for s in (0, 0.0123, 1.234, 59.9, 61, 90_000)] == [
        "0 s", "12.3 ms", "1.23 s", "59.9 s", "0:01:01", "1 day, 1:00:00",
    ]  # fmt: skip
