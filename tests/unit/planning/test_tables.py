"""The pages: every number is on them, and the HTML is one whole file that loads nothing."""

import dataclasses
import html.parser
import json
import re
import shutil
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from browser import BROWSER, browse
from rich.console import Console

from paxlike.accounting.hlo_collectives import Collective
from paxlike.config import Config
from paxlike.planning import tables
from paxlike.planning.compile import Facts
from paxlike.planning.html import plan_page, sweep_page
from paxlike.planning.lanes import lanes
from paxlike.planning.scatter_plot import scatter
from paxlike.planning.simulated_step import Step, simulated
from paxlike.planning.timeline import Transfer, simulate
from paxlike.planning.topology import cluster
from paxlike.planning.trace import is_trace, write_trace

SVG = "{http://www.w3.org/2000/svg}"
TOLD = {
    "config": "a<b",
    "cluster": {"name": "v4:2x2x2", "pods": 2, "chips": 16, "chip": "TPU v4"},
    "mesh": {"pod": 2, "data": 4, "model": 2},
    "remat": "full",
    "batch": {"sequences": 8, "sequence_length": 32, "tokens": 256, "tokens_per_chip": 16.0},
    "fits": True,
    "memory": {
        "parts": {"parameters": 2**30, "temporaries": 3 * 2**30},
        "needed": 2**32,
        "usable": 2**33,
    },
    "refused": "",
    "buffers": [[2**20, "a<b wup_DF", [4, 8]]],
    "compile": {"seconds": 12.3},
    "collectives": [
        {
            "kind": "all-gather",
            "axis": "data",
            "in_layer_loop": True,
            "dtype": "bf16",
            "bytes": 2**20,
            "times": 7,
            "wires": "2 rings",
            "seconds": 0.5,
            "sent_bytes": 1,
            "waits": True,
            "exposed": 0.5,
        },
        {
            "kind": "all-to-all",
            "axis": "data",
            "in_layer_loop": True,
            "dtype": "bf16",
            "bytes": 2**20,
            "times": 7,
            "wires": "2 rings",
            "seconds": 0.25,
            "sent_bytes": 1,
            "waits": False,
            "exposed": 0.0,
        },
        {
            "kind": "all-reduce",
            "axis": "model",
            "in_layer_loop": False,
            "dtype": "f32",
            "bytes": 4,
            "times": 9,
            "wires": "1 ring",
            "seconds": 1e-6,
            "sent_bytes": 1,
            "waits": False,
            "exposed": 0.0,
        },
    ],
    "communication": [
        {"axis": "data", "kind": "all-gather", "sent": 0.5, "hidden": 0.125, "exposed": 0.375},
    ],
    "most_exposed": [
        {
            "name": "all-gather.7",
            "op_name": "jit(train_step)/while/body/BTD,DF->BTF/all_gather",
            "kind": "all-gather",
            "axis": "data",
            "times": 7,
            "bytes": 2**20,
            "sent": 0.5,
            "exposed": 0.375,
            "beside": [{"name": "fusion.1", "op_name": "", "seconds": 0.125}],
        },
    ],
    "crossing_pod": {"verdict": "nothing to speak of"},
    "flops": {
        "per_device": 10**12,
        "per_token": 10**9,
        "palm_per_token": 8 * 10**8,
        "convention": "palm: 6N + 12LHQT",
        "hardware_over_model": 1.25,
        "uncounted": ["odd (1)"],
    },
    "predicted": {
        "seconds": {
            "matrix": 1.0,
            "memory": 0.5,
            "device": 1.2,
            "links": 0.5,
            "hidden": 0.0,
            "step": 1.7,
        },
        "tokens_per_second": 150.6,
        "mfu": 0.4321,
        "hfu": 0.5678,
        "budget_tokens": 10**9,
        "days": 76.9,
        "chip_hours": 29_513.0,
    },
    "remedies": [
        {"change": "model.remat dots", "needed": 2**31, "fits": False, "predicted": None},
        {"change": "x", "error": "odd"},
    ],
}
ROWS = [
    {
        "model": 2,
        "remat": "full",
        "batch_size": 8,
        "fits": True,
        "needed": 2**32,
        "mfu": 0.5,
        "hfu": 0.6,
        "step": 1.0,
        "tokens_per_second": 10.0,
        "days": 3.0,
        "error": "",
    },
    {
        "model": 4,
        "remat": "none",
        "batch_size": 8,
        "fits": False,
        "needed": 0,
        "error": "does not divide",
    },
]


FACTS = Facts(
    mesh={"pod": 1, "data": 4, "model": 2},
    memory={},
    needed=0,
    refused="",
    buffers=[],
    flops=1,
    uncounted=[],
    work=[["fusion.1", "a<b/dot", 1, 1, 0, False, False], ["copy", "", 1, 0, 1, False, False]],
    collectives=[
        dataclasses.asdict(Collective("all-gather", "data", 4, "bf16", 1, 4, 1, True, "g", ""))
    ],
    items=[["loop", 3, [["start", 0], ["work", 0], ["done", [0]], ["work", 1]]]],
    seconds=1.0,
    process_bytes=1,
)
STEP = Step(
    simulate(FACTS.items, [1.0, 0.25], [Transfer(1.5, frozenset("x"))]),
    ["1 ring"],
    ["1 ring"],
    1.0,
    0.5,
)


def test_the_lanes_cover_the_step():
    device, link = lanes(FACTS, STEP)
    assert [(s.kind, s.end - s.begin) for s in device.segments] == 3 * [
        ("matrix", 1.0),
        ("wait", 0.5),
        ("memory", 0.25),
    ]
    assert link.name == "data (1 ring)" and [s.begin for s in link.segments] == [0, 1.75, 3.5]
    ends = [0.0, *(s.end for s in device.segments)]
    assert [s.begin for s in device.segments] == ends[:-1] and ends[-1] == STEP.timeline.step


def test_the_picture_shows_the_step_and_one_iteration():
    page = plan_page(TOLD, FACTS, STEP)
    assert "the whole step" in page and "from 1.75 s to 3.50 s" in page
    svg = re.findall(r"<svg.*?</svg>", page, re.DOTALL)[-1]
    drawn = [float(r.get("width")) for r in ElementTree.fromstring(svg).iter(f"{SVG}rect")]
    compute, wait, memory, send = drawn  # of one iteration, 1.75 s
    assert wait == pytest.approx(compute / 2, rel=1e-3) == pytest.approx(2 * memory, rel=1e-3)
    assert send == pytest.approx(1.5 * compute, rel=1e-3)


def test_the_trace_has_a_track_for_each_lane(tmp_path):
    path = tmp_path / "step.json"
    write_trace(path, "a", FACTS, STEP)
    events = json.loads(path.read_text())["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {0: "device", 1: "data (1 ring)"} and len(spans) == 12
    assert max(e["ts"] + e["dur"] for e in spans) == pytest.approx(1e6 * STEP.timeline.step)
    assert is_trace(path)
    path.write_text('{"traceEvents": []}')
    assert not is_trace(path)


@pytest.mark.optional("xprof")
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_trace_viewer_reads_all_of_the_trace(tmp_path):
    """The importer of xprof's trace viewer, which reads the same format as Perfetto."""
    import xprof

    write_trace(tmp_path / "step.json", "a", FACTS, STEP)
    viewer = Path(xprof.__file__).parent / "static" / "trace_viewer_index.html"
    trace = json.dumps((tmp_path / "step.json").read_text()).replace("</", "<\\/")
    script = f"""<script>
const model = new tr.Model();
new tr.importer.Import(model).importTraces([{trace}]);
const tracks = model.getAllThreads().map(t => [t.name, t.sliceGroup.length]);
const found = [model.importWarnings.length, model.bounds.max, tracks];
document.body.innerHTML = "<p id=found>" + JSON.stringify(found) + "</p>";
</script></body>"""
    page = tmp_path / "page.html"
    page.write_text(viewer.read_text().replace("</body>", script))
    shutil.copy(viewer.with_suffix(".js"), tmp_path)
    found = re.search("<p id=.found.>(.*?)</p>", browse(tmp_path, page, "--dump-dom"))
    assert found
    warnings, end, tracks = json.loads(found[1])
    assert warnings == 0 and end == pytest.approx(1e3 * STEP.timeline.step)  # ms
    assert sum(count for _, count in tracks) == 12
    assert [name for name, _ in tracks] == ["device", "data (1 ring)"]


def permute(name, shift):
    sent = Collective(
        "collective-permute", "model", 2, "bf16", 10**6 + 1, 10**6 + 1, 7, True, name, "",
        alone=False, shift=shift, block=4,
    )  # fmt: skip
    return dataclasses.asdict(sent)


def test_the_trace_is_of_the_format_that_perfetto_reads(tmp_path):
    """The fields of the Trace Event Format's complete and metadata events, and slices that do not
    overlap within a track: Perfetto drops a slice that begins inside another and ends after it."""
    devices = np.empty((1, 16, 4), object)
    for index in np.ndindex(devices.shape):
        place = (index[1] // 4, index[1] % 4, index[2])
        devices[index] = types.SimpleNamespace(coords=place, slice_index=0)
    loop = [["start", 0], ["start", 1], ["work", 0], ["done", [0]], ["done", [1]], ["work", 1]]
    facts = dataclasses.replace(
        FACTS,
        mesh={"pod": 1, "data": 16, "model": 4},
        work=[
            ["fusion.1", "a", 7, 10**9 + 1, 0, False, False],
            ["copy", "", 7, 0, 1, False, False],
        ],
        collectives=[permute("p.1", 1), permute("p.2", -1)],
        items=[["loop", 7, loop]],
    )
    path = tmp_path / "step.json"
    step = simulated(Config(name="a"), cluster("v4:4x4x4"), facts, devices)
    write_trace(path, "a", facts, step)
    events = json.loads(path.read_text())["traceEvents"]
    named = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    slices = [e for e in events if e["ph"] == "X"]
    assert {e["ph"] for e in events} == {"M", "X"}
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == ["a"]
    assert sorted(named.values()) == [
        "device",
        "model (one way of 1 ring, z+)",
        "model (one way of 1 ring, z-)",
    ]
    for event in events:
        assert isinstance(event["name"], str) and event["name"]
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
    for event in slices:
        assert event["tid"] in named and isinstance(event["cat"], str)
        assert event["ts"] >= 0 and event["dur"] >= 0
        for time in (event["ts"], event["dur"]):  # whole nanoseconds
            assert 1000 * time == pytest.approx(round(1000 * time), abs=1e-6)
    for track in named:
        of_track = sorted((e["ts"], e["dur"]) for e in slices if e["tid"] == track)
        ends = [round(1000 * (ts + duration)) for ts, duration in of_track]
        begins = [round(1000 * ts) for ts, _ in of_track]
        assert len(of_track) >= 7
        assert all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))
    assert max(e["ts"] + e["dur"] for e in slices) == pytest.approx(
        1e6 * step.timeline.step, abs=1e-3
    )


def text_of(renderable) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"), markup=False)
    console.print(renderable)
    return console.export_text()


def test_every_figure_is_on_the_terminal():
    text = text_of(tables.describe(TOLD))
    for figure in (
        "2 x v4:2x2x2 (16 x TPU v4), mesh pod 2 x data 4 x model 2, remat full, 8 x 32 tokens per "
        "step (16 per chip); compiled in 12 s",
        "FITS: 4.00 GiB of 8.00 GiB usable",
        "3.00 GiB",
        "wup_DF",
        "4 x 8",
        "all-gather",
        "2 rings",
        "375 ms",
        "BTD,DF->BTF/all_gather",
        "fusion.1: 125 ms",
        "nothing to speak of",
        "1.2500",
        "odd (1)",
        "43.2%",
        "56.8%",
        "76.9",
        "29,513",
        "model.remat dots",
        "1 kinds more, each below 0.1%",
    ):
        assert figure in text, figure


@pytest.mark.parametrize(
    ("fits", "usable", "words"),
    [(False, 2**31, "DOES NOT FIT: 4.00 GiB of 2.00 GiB"), (None, None, "needs 4.00 GiB")],
)
def test_verdicts(fits, usable, words):
    told = TOLD | {"fits": fits, "memory": TOLD["memory"] | {"usable": usable}}
    assert tables.verdict(told).startswith(words)


@pytest.mark.parametrize(
    "made",
    [plan_page(TOLD, FACTS, STEP), sweep_page("a<b", "v4:2x2x2", 2**33, ROWS)],
    ids=["plan", "sweep"],
)
def test_the_page_is_whole_and_loads_nothing(made):
    open_tags, seen = [], set()

    class Tags(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen.add(tag)
            if tag not in ("meta",):
                open_tags.append(tag)
            assert not {"src", "href", "onload"} & {name for name, _ in attributes}

        def handle_startendtag(self, tag, attributes):
            seen.add(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Tags().feed(made)
    assert open_tags == [] and {"svg", "table", "style"} <= seen and "script" not in seen
    addresses = set(re.findall(r"https?://[^\"'\s<]*", made))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name in XML, not an address
    assert "url(" not in made and "@import" not in made
    assert "a&lt;b" in made and "a<b" not in made


def test_the_memorys_parts_and_its_end_are_drawn_to_scale():
    """Parts of 1 and 3 GiB of 8 usable: the line stands at the full width, twice as far as the
    parts reach.
    """
    bar = ElementTree.fromstring(
        re.search(r"<svg.*?</svg>", plan_page(TOLD, FACTS, STEP), re.DOTALL)[0]
    )
    parts = [(float(r.get("x")), float(r.get("width"))) for r in bar.iter(f"{SVG}rect")]
    (first, one), (second, three) = parts
    assert three == pytest.approx(3 * one, abs=0.02) and second == pytest.approx(
        first + one, abs=0.02
    )
    assert float(bar.find(f"{SVG}line").get("x1")) == pytest.approx(
        first + 2 * (one + three), abs=0.1
    )
    unlimited = plan_page(
        TOLD | {"fits": None, "memory": TOLD["memory"] | {"usable": None}}, FACTS, STEP
    )
    assert 'class="event"' in plan_page(TOLD, FACTS, STEP) and 'class="event"' not in unlimited


def test_a_sweeps_points_stand_where_the_axes_say():
    card = scatter([(1, 40, "a", "first"), (4, 20, "b & c", "second")], 5.0)
    plot = ElementTree.fromstring(re.search(r"<svg.*</svg>", card)[0])
    dots = {
        c.find(f"{SVG}title").text: (float(c.get("cx")), float(c.get("cy")))
        for c in plot.iter(f"{SVG}circle")
    }
    texts = [
        (e.text, float(e.get("x")), float(e.get("y")), e.get("text-anchor"))
        for e in plot.iter(f"{SVG}text")
    ]
    below = {text: x for text, x, _, anchor in texts if anchor == "middle"}
    beside = {text: y - 4 for text, _, y, anchor in texts if anchor == "end"}
    assert dots["first"] == pytest.approx((below["1"], beside["40 %"]), abs=0.2)
    assert (
        dots["second"][0] == pytest.approx(below["4"], abs=0.2)
        and dots["second"][1] > dots["first"][1]
    )
    line = next(e for e in plot.iter(f"{SVG}line") if e.get("class") == "event")
    assert float(line.get("x1")) == pytest.approx(below["5"], abs=0.2)
    assert "b &amp; c" in card and card.count("<li ") == 2
