"""The HTML page is self-contained, escapes all text, and draws the numbers to scale."""

import html.parser
import re
import time
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from sample_runs import realistic_run, start, step, write

from paxlike.accounting.history import read_history
from paxlike.accounting.report.bars import Bar, bars
from paxlike.accounting.report.document import document, write_page
from paxlike.accounting.report.page import page
from paxlike.accounting.report.plot import Curve, Mark, plot, ticks
from paxlike.accounting.report.smoothing import BUCKETS, smooth, thin
from paxlike.accounting.report.summary import summarize
from paxlike.config import UserError

VOID = {"meta", "link", "br", "img", "input"}


def html_of(*folders) -> str:
    histories = [read_history(folder) for folder in folders]
    return page([summarize(history) for history in histories], histories)


class Tags(html.parser.HTMLParser):
    """Collects tag names and attributes; requires that every tag is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return realistic_run(root / "first", 400, 1, restart_at=230), realistic_run(
        root / "second", 300, 2, rate=1.2
    )


def svgs(text: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_page_is_well_formed_and_complete(folders):
    for chosen in (folders[:1], folders):
        text = html_of(*chosen)
        tags = Tags(text)
        assert tags.seen.count("svg") == len(svgs(text)) == 7 and "table" in tags.seen
        titles = re.findall(r"<h2>(.*?)</h2>", text)
        for title in (
            "Loss",
            "Step time",
            "Tokens per second",
            "MFU",
            "Wall time by cause",
            "FLOPs by part",
            "Memory",
        ):
            assert any(found.startswith(title) for found in titles), title
        assert "nan" not in re.sub(r"<style>.*?</style>", "", text).lower()


def test_page_has_no_scripts_or_external_resources(folders):
    text = html_of(*folders)
    tags = Tags(text)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(tags.seen)
    names = {name for name, _ in tags.attributes}
    assert not {"src", "href", "srcset", "action", "onload", "onclick"} & names
    addresses = set(re.findall(r"https?://[^\"'\s<]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # an XML namespace, not a request
    assert "@import" not in text and "url(" not in text and "prefers-color-scheme: dark" in text


def test_text_is_escaped(tmp_path):
    hostile = '<script>alert("x")</script>&'
    event = start(device=hostile, mesh={hostile: hostile}, energy_source=hostile)
    event["chip"]["source"] = hostile
    folder = write(
        tmp_path / "<script>run<&'",
        [event, step(1, joules=3.0), {"event": "stop", "step": 1, "signal": hostile}],
        name=hostile,
    )
    for text in (html_of(folder), html_of(folder, folder)):
        assert "<script" not in text and "&lt;script&gt;" in text
        assert "script" not in Tags(text).seen and svgs(text)


def test_every_percentage_has_its_formula_and_peak(folders):
    text = html_of(*folders)
    found = re.findall(r"<td>(\d+\.\d%)<small>(.*?)</small></td>", text)
    assert len(found) == 2 * 5
    for percent, formula in found:
        rate, tera, chips, peak = (
            float(re.search(pattern, formula)[1].replace(",", ""))
            for pattern in (
                r"^([\d,.]+) tokens/s",
                r"x ([\d.]+) TFLOP/token",
                r"\(([\d,]+) chips",
                r"x ([\d.]+) TFLOP/s\)$",
            )
        )
        assert f"{rate * tera / (chips * peak):.1%}" == percent
    assert "275 TFLOP/s dense bfloat16 per TPU v4 (a data sheet)" in text


@pytest.mark.slow
def test_page_of_100_000_steps_takes_linear_time_and_stays_small(tmp_path):
    """Five times the steps take about five times as long; quadratic time would be 25 times."""
    seconds = []
    for steps in (20_000, 100_000):
        folder = realistic_run(tmp_path / str(steps), steps, 3)
        begin = time.process_time()
        text = html_of(folder)
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 12 * seconds[0]
    assert len(text) < 300_000


# ---- drawings ------------------------------------------------------------------------------------


def test_thinning_keeps_spikes_and_both_ends():
    values = np.random.default_rng(0).normal(size=50_000)
    values[12_345], values[40_001] = 99.0, -99.0
    steps = np.arange(1, 50_001)
    x, y = thin(steps, values)
    assert x.size <= 2 * BUCKETS + 2 and x[0] == 1 and x[-1] == 50_000
    assert {99.0, -99.0} <= set(y) and (np.diff(x) > 0).all() and (values[x - 1] == y).all()
    assert thin(steps[:700], values[:700])[0].size == 700


def test_smoothing_matches_the_definition_and_does_not_lag():
    values = np.array([1.0, 5.0, 2.0, 8.0])
    weights = 0.5 ** (np.arange(4) / 3)

    def one_sided(v):
        return [
            sum(w * x for w, x in zip(weights, reversed(v[: k + 1]), strict=False))
            / weights[: k + 1].sum()
            for k in range(4)
        ]

    both = (np.array(one_sided(values)) + np.array(one_sided(values[::-1]))[::-1]) / 2
    np.testing.assert_allclose(smooth(values, 3), both)
    line = np.arange(1000.0)
    np.testing.assert_allclose(smooth(line, 10)[200:800], line[200:800], atol=1e-3)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (1, 100_000), (0, 0.0037), (2.1, 2.2), (5e5, 7e11)]
)
def test_ticks_are_round_numbers_within_the_range(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 8 and low <= found[0] and found[-1] <= high
    gaps = np.diff(found)
    np.testing.assert_allclose(gaps, gaps[0])
    assert float(f"{gaps[0]:.1e}") == pytest.approx(gaps[0], rel=1e-6)


def test_plot_positions_match_the_axis_labels():
    steps, values = np.arange(0, 101), np.linspace(0, 50, 101)
    svg, caption = plot([Curve("a", 0, steps, values)], str, marks=[Mark("m", 1, 100, 40.0)])
    root = ET.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    raw = next(e for e in root.iter(f"{name}polyline") if "raw" in e.get("class"))
    points = [tuple(map(float, point.split(","))) for point in raw.get("points").split()]
    value_labels = {
        e.text: float(e.get("y")) - 3.8
        for e in root.iter(f"{name}text")
        if e.get("text-anchor") == "end"
    }
    step_labels = {
        e.text: float(e.get("x"))
        for e in root.iter(f"{name}text")
        if e.get("text-anchor") == "middle"
    }
    x, y = points[80]
    assert x == pytest.approx(step_labels["80"], abs=0.2)
    assert y == pytest.approx(value_labels["40.0"], abs=0.2)
    circle = next(root.iter(f"{name}circle"))
    assert (
        float(circle.get("cy")) == pytest.approx(value_labels["40.0"], abs=0.2)
        and float(circle.get("cx")) == points[-1][0]
    )
    bands = [e.find(f"{name}title").text for e in root.iter(f"{name}rect")]
    assert bands[0].startswith("step") and "a: " in bands[0] and "half-life 1 step" in caption


def test_outliers_are_clipped_and_reported_in_the_caption():
    values = np.ones(1000)
    values[500] = 1000.0
    svg, caption = plot([Curve("a", 0, np.arange(1000), values)], lambda v: f"{v:g} s")
    assert "1 above the axis, maximum 1000 s" in caption and "200 s" not in svg


def test_plot_omits_values_that_are_not_finite_and_empty_curves():
    values = np.array([1.0, np.nan, 3.0])
    svg, _ = plot([Curve("a", 0, np.arange(3), values)], str)
    assert "nan" not in svg and svg.count("polyline") == 2
    assert plot([Curve("a", 0, np.arange(3), values * np.nan)], str) == ("", "")
    one, _ = plot([Curve("a", 0, np.array([7]), np.array([0.0]))], str, zero=False)
    ET.fromstring(one)


def test_bar_lengths_are_proportional_to_values():
    svg = bars([Bar("run", (("a", 3.0, "s0"), ("b", 1.0, "s1"), ("c", 0.0, "s2")), "4")], str)
    widths = [
        float(width) for width in re.findall(r'class="segment \S+" .*? width="([\d.]+)"', svg)
    ]
    assert len(widths) == 2 and widths[0] == pytest.approx(3 * widths[1], rel=1e-3)
    half = bars([Bar("run", (("a", 3.0, "s0"),), "3")], str, scale=6.0)
    assert float(re.search(r'width="([\d.]+)"', half)[1]) == pytest.approx(
        sum(widths) / 2, rel=1e-3
    )


# ---- writing -------------------------------------------------------------------------------------


def test_page_replaces_only_pages_of_the_same_command(folders, tmp_path):
    text, path = html_of(folders[0]), tmp_path / "report.html"
    write_page(path, "report", text)
    write_page(path, "report", text)
    assert path.read_text() == text and [p.name for p in tmp_path.iterdir()] == ["report.html"]
    letter, plan = tmp_path / "letter.html", tmp_path / "plan.html"
    letter.write_text("<p>dear diary")
    write_page(plan, "plan", document("plan", "a plan", ""))
    for taken in (letter, plan, tmp_path):
        with pytest.raises(UserError, match="is not overwritten|is a directory"):
            write_page(taken, "report", text)
    assert letter.read_text() == "<p>dear diary" and "a plan" in plan.read_text()
    with pytest.raises(UserError, match="there is no directory"):
        write_page(tmp_path / "none" / "x.html", "report", text)
