"""Reports show what routers did: by layer for one run, one curve for each of several runs."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
from sample_runs import start, step, write

from paxlike.accounting.history import read_history
from paxlike.accounting.report.page import page
from paxlike.accounting.report.summary import summarize
from paxlike.accounting.report.table import rows


def run(folder, layers: int, scale: float = 1.0):
    """Three steps; layer i has the load (1 + i) * scale at each, and nothing at the second."""

    def metrics(number: int) -> dict:
        if number == 2:
            return {}
        loads = {f"expert_load/{i}": (1 + i) * scale for i in range(layers)}
        entropies = {f"router_entropy/{i}": float(i) for i in range(layers)}
        return {**loads, **entropies, "dropped_choices": 0.0, "expert_load": 99.0}

    return write(folder, [start(), *(step(n, **metrics(n)) for n in (1, 2, 3))])


def card(text: str, title: str) -> str:
    (found,) = (part for part in text.split("<figure")[1:] if f"<h2>{title}</h2>" in part)
    return found


def html_of(*folders) -> str:
    histories = [read_history(folder) for folder in folders]
    return page([summarize(history) for history in histories], histories)


def legend(text: str) -> list[str]:
    return re.findall(r"<span>(.*?)</span>", text.partition("<figcaption>")[0])


def shown(text: str, label: str) -> list[str]:
    return re.findall(rf"^{label}: (\S+)$", text.replace("<", "\n<"), re.MULTILINE)


def test_one_run_has_a_curve_for_each_layer(tmp_path):
    load = card(html_of(run(tmp_path / "run", 3)), "Busiest expert / mean load")
    assert legend(load) == ["layer 0", "layer 1", "layer 2"]
    assert [shown(load, f"layer {i}") for i in range(3)] == [["1"] * 2, ["2"] * 2, ["3"] * 2]


def test_routers_of_heads_have_plots_of_their_own(tmp_path):
    metrics = {
        "expert_load/0": 1.5, "expert_load": 4.0, "heads_expert_load/0": 4.0,
        "heads_expert_load/1": 2.0, "router_entropy/0": 1.0, "heads_router_entropy/0": 0.25,
    }  # fmt: skip
    folder = write(tmp_path / "run", [start(), *(step(n, **metrics) for n in (1, 2))])
    text = html_of(folder)
    load = card(text, "Busiest expert of heads / mean load")
    assert [shown(load, f"layer {i}") for i in range(2)] == [["4"] * 2, ["2"] * 2]
    assert "Router entropy of heads, nats" in text
    found = summarize(read_history(folder))["routers"]
    assert found == {
        "expert_load": 1.5, "router_entropy": 1.0, "heads_expert_load": 4.0,
        "heads_router_entropy": 0.25,
    }  # fmt: skip


def test_many_layers_are_summed_up(tmp_path):
    load = card(html_of(run(tmp_path / "run", 9)), "Busiest expert / mean load")
    assert legend(load) == ["lowest layer", "mean", "highest layer"]
    assert [shown(load, label)[0] for label in legend(load)] == ["1", "5", "9"]


def test_several_runs_have_a_curve_each(tmp_path):
    folders = run(tmp_path / "a", 3), run(tmp_path / "b", 2, 5.0), dense(tmp_path / "dense")
    text = html_of(*folders)
    load, entropy = (
        card(text, title) for title in ("Busiest expert / mean load", "Router entropy, nats")
    )
    assert legend(load) == legend(entropy) == ["a", "b"]
    assert shown(load, "a") == ["3"] * 2 and shown(load, "b") == ["10"] * 2  # the worst layer
    assert shown(entropy, "a") == ["1"] * 2 and shown(entropy, "b") == ["0.5"] * 2  # the mean


def dense(folder):
    return write(folder, [start(), step(1), step(2)])


def test_runs_without_routers_have_no_plots_of_them(tmp_path):
    text = html_of(dense(tmp_path / "dense"))
    assert "Router" not in text and "expert" not in text
    assert summarize(read_history(tmp_path / "dense"))["routers"] is None


def test_no_dropped_choice_is_drawn_at_the_bottom_of_an_axis_from_0(tmp_path):
    dropped = card(html_of(run(tmp_path / "run", 2)), "Dropped choices of experts")
    svg = ET.fromstring(re.search(r"<svg.*?</svg>", dropped, re.DOTALL)[0])
    name = "{http://www.w3.org/2000/svg}"
    bottom = next(line for line in svg.iter(f"{name}line") if line.get("class") == "axis").get("y1")
    (curve,) = svg.iter(f"{name}polyline")
    assert {float(p.split(",")[1]) for p in curve.get("points").split()} == {float(bottom)}
    assert "-" not in "".join(text.text or "" for text in svg.iter(f"{name}text"))


def test_the_table_has_the_last_known_value(tmp_path):
    folder = run(tmp_path / "run", 4)
    history = read_history(folder)
    assert math.isnan(history.routers["expert_load/1"][1])
    assert np.array_equal(history.routers["expert_load/1"][[0, 2]], [2, 2])
    summary = summarize(history)
    assert summary["routers"] == {
        "expert_load": 4.0, "router_entropy": 1.5, "dropped_choices": 0.0
    }  # fmt: skip
    section = dict(rows([summary]))["Routers, at the last step"]
    assert [cells for _, cells in section] == [["4"], ["1.5"], ["0.00%"]]
