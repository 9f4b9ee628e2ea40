"""Benchmarks of the components around the step: smoke tests, and their tables and files."""

import json
import os
import time
import types

import jax
import numpy as np
import pytest

from tools.bench import (
    checkpoint,
    components,
    experts,
    generation,
    input,
    measure,
    plot,
    scaling,
    startup,
)
from tools.bench.measure import Row, format_number, interleave, markdown_table, write

pytestmark = pytest.mark.slow


def test_workloads_are_interleaved_and_warmup_turns_are_not_recorded():
    order = []
    timings = interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, turns=2, warmup=1
    )
    assert order == ["a", "b"] * 3
    assert all(len(timings[name].wall_times) == len(timings[name].cpu_times) == 2 for name in "ab")


def test_cpu_and_wall_time_are_measured(monkeypatch):
    """The median turn takes 2 s, of which the process computes for 1.5 s."""
    now = {"wall": 100.0, "cpu": 10.0}
    clock = types.SimpleNamespace(perf_counter=lambda: now["wall"], process_time=lambda: now["cpu"])
    monkeypatch.setattr(measure, "time", clock)
    durations = iter([50.0, 1.0, 2.0, 8.0])  # the first is the warmup turn

    def work():
        seconds = next(durations)
        now["wall"] += seconds
        now["cpu"] += 0.75 * seconds

    timings = interleave({"work": work}, turns=3)["work"]
    assert timings.wall == 2.0 and timings.cpu == 1.5


def test_a_row_shows_ratio_and_verdict():
    rows = [
        Row("speed", 30.0, "MB/s", "other", 20.0, "faster", True),
        Row("late", 3.0, "s", goal="under 2", reached=False),
    ]
    text = markdown_table("Part", rows)
    assert "| speed | 30 MB/s | other: 20 MB/s | 1.5 × | faster: reached |" in text
    assert "| late | 3 s |  |  | under 2: MISSED |" in text
    assert rows[0].as_dict()["ratio"] == 1.5 and rows[1].ratio is None


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (0.012345, "0.0123"), (999.4, "999")]
)
def test_numbers_have_three_significant_digits(value, text):
    assert format_number(value) == text


def test_a_row_of_numpy_numbers_is_json():
    row = Row("a", np.float32(1), "s", "b", np.float64(4), reached=np.bool_(True)).as_dict()
    assert json.loads(json.dumps(row)) == row and row["reached"] is True and row["ratio"] == 0.25


def test_a_written_file_leaves_no_temporary_file(tmp_path):
    write(tmp_path / "new" / "file", "text")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def names(rows: list[Row]) -> list[str]:
    for row in rows:
        assert row.value == row.value and row.value > 0, row
    return [row.name for row in rows]


def test_input(tmp_path, monkeypatch):
    monkeypatch.setenv("PAXLIKE_CACHE", str(tmp_path))
    found = names(input.rows("test"))
    assert [name.split(",")[0] for name in found[:1]] == ["token store"]
    assert len(found) == 6


def test_checkpoint(monkeypatch):
    """Renames are delayed, so that writing is slow compared with any other load of the machine."""
    rename = os.rename

    def slow_rename(source, target, **options):
        if "checkpoints" in str(source):
            time.sleep(0.5)
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", slow_rename)
    found = checkpoint.rows("test")
    assert names(found)[:4] == ["save returns after", "save", "restore", "sha256 alone"]
    returns = found[0]
    assert returns.value < 0.8 * returns.baseline_value, "save returned only after all was written"


def test_generation():
    found = generation.rows("test")
    assert len(names(found)) == 9
    cache = next(row for row in found if row.name.startswith("cache"))
    assert cache.ratio == pytest.approx(1 / 4)


def test_scaling(monkeypatch):
    monkeypatch.setattr(scaling, "LAYERS", (2, 4))
    monkeypatch.setattr(scaling, "MESHES", ((1, 1), (2, 1)))
    enabled = jax.config.jax_enable_compilation_cache
    found = scaling.rows("test")
    assert jax.config.jax_enable_compilation_cache == enabled
    assert names(found) == [
        "compiling 4 layers",
        "compiling for data 2 × model 1",
        "the call of a step returns after",
        "CPU time of the calling thread",
    ]


def test_experts():
    found = experts.measure("test")
    assert len(set(names(found))) == 6 and found[0].baseline == "dense, of its active size"


def test_startup():
    assert names(startup.rows("test")) == ["paxlike --help", "paxlike info configs/palm_540b.py"]


def test_a_component_writes_json_and_all_together_a_plot(tmp_path):
    components.main(["startup", "--size", "test", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "components.json").read_text())
    assert found["startup"]["size"] == "test" and found["startup"]["machine"]["cores"] > 0
    assert all(row["reached"] is None for row in found["startup"]["rows"]), (
        "goals do not apply to a small size"
    )
    svg = (tmp_path / "components.svg").read_text()
    assert svg.count("<rect") == 1 + 2 * len(found["startup"]["rows"]) and "&lt;" not in svg


def test_an_unknown_component_is_an_error(capsys):
    with pytest.raises(SystemExit):
        components.main(["inputs"])
    assert "unknown component inputs; choose from startup" in capsys.readouterr().err


def test_bar_lengths_are_proportional_to_values():
    svg = plot.bar_plot("a < b", [("group", [("x", 1.0), ("y", 4.0)]), ("empty", [])])
    widths = [float(part.split('width="')[1].split('"')[0]) for part in svg.split("<rect ")[2:]]
    assert widths[1] == pytest.approx(4 * widths[0]) and "a &lt; b" in svg and "empty" not in svg
