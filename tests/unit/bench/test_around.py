"""The benches of what is around the step: they run at a small size, and their tables and files hold what they say."""

import json
import time

import jax
import numpy as np
import pytest

from tools.bench import around, checkpoint, generation, growth, input, plot, startup
from tools.bench.measure import Row, number, table, take_turns, write


def test_works_take_turns_and_the_warm_ones_do_not_count():
    order = []
    taken = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, turns=2, warm=1)
    assert order == ["a", "b"] * 3
    assert all(len(taken[name].walls) == len(taken[name].cpus) == 2 for name in "ab")


def test_cpu_time_counts_work_and_wall_time_waiting():
    def work(end=0.02):
        begin = time.process_time()
        while time.process_time() - begin < end:
            pass

    taken = take_turns({"work": work}, turns=3)
    assert taken["work"].cpu >= 0.02 and taken["work"].wall >= 0.02


def test_a_row_tells_ratio_and_verdict():
    rows = [
        Row("speed", 30.0, "MB/s", "other", 20.0, "ahead", True),
        Row("late", 3.0, "s", goal="under 2", reached=False),
    ]
    told = table("Part", rows)
    assert "| speed | 30 MB/s | other: 20 MB/s | 1.5 × | ahead: reached |" in told
    assert "| late | 3 s |  |  | under 2: MISSED |" in told
    assert rows[0].as_dict()["ratio"] == 1.5 and rows[1].ratio is None


@pytest.mark.parametrize(("value", "told"), [(1234.5, "1,234"), (0.012345, "0.0123"), (999.4, "999")])
def test_numbers_have_three_digits_that_mean_something(value, told):
    assert number(value) == told


def test_a_row_of_numpy_numbers_is_json():
    row = Row("a", np.float32(1), "s", "b", np.float64(4), reached=np.bool_(True)).as_dict()
    assert json.loads(json.dumps(row)) == row and row["reached"] is True and row["ratio"] == 0.25


def test_a_file_is_whole_or_not_there(tmp_path):
    write(tmp_path / "new" / "file", "text")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def whats(rows: list[Row]) -> list[str]:
    for row in rows:
        assert row.value == row.value and row.value > 0, row
    return [row.what for row in rows]


def test_input(tmp_path, monkeypatch):
    monkeypatch.setenv("PAXLIKE_CACHE", str(tmp_path))
    found = whats(input.rows("test"))
    assert [what.split(",")[0] for what in found[:1]] == ["token store"]
    assert len(found) == 6


def test_checkpoint():
    found = checkpoint.rows("test")
    assert whats(found)[:4] == ["save returns after", "save", "restore", "sha256 alone"]
    returns = found[0]
    assert returns.value < 0.8 * returns.other, "save returned only when all was written"


@pytest.mark.slow
def test_generation():
    found = generation.rows("test")
    assert len(whats(found)) == 9
    cache = next(row for row in found if row.what.startswith("cache"))
    assert cache.ratio == pytest.approx(1 / 4)


@pytest.mark.slow
def test_growth(monkeypatch):
    monkeypatch.setattr(growth, "LAYERS", (2, 4))
    monkeypatch.setattr(growth, "MESHES", ((1, 1), (2, 1)))
    enabled = jax.config.jax_enable_compilation_cache
    found = growth.rows("test")
    assert jax.config.jax_enable_compilation_cache == enabled
    assert whats(found) == [
        "compiling 4 layers", "compiling for data 2 × model 1", "the call of a step returns after", "CPU time of the calling thread",
    ]  # fmt: skip


def test_startup():
    assert whats(startup.rows("test")) == ["paxlike --help", "paxlike info configs/palm_540b.py"]


def test_a_part_writes_json_and_all_parts_a_plot(tmp_path):
    around.main(["startup", "--size", "test", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "around.json").read_text())
    assert found["startup"]["size"] == "test" and found["startup"]["machine"]["cores"] > 0
    assert all(row["reached"] is None for row in found["startup"]["rows"]), "a small size reaches no goal"
    svg = (tmp_path / "around.svg").read_text()
    assert svg.count("<rect") == 1 + 2 * len(found["startup"]["rows"]) and "&lt;" not in svg


def test_an_unknown_part_is_an_error(capsys):
    with pytest.raises(SystemExit):
        around.main(["inputs"])
    assert "there is no part inputs; there are startup" in capsys.readouterr().err


def test_bars_are_as_long_as_their_values():
    svg = plot.bar_plot("a < b", [("group", [("x", 1.0), ("y", 4.0)]), ("empty", [])])
    widths = [float(part.split('width="')[1].split('"')[0]) for part in svg.split("<rect ")[2:]]
    assert widths[1] == pytest.approx(4 * widths[0]) and "a &lt; b" in svg and "empty" not in svg
