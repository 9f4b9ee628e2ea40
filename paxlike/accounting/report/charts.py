"""The charts of the page: plots over steps with one curve a run, and bars of wall time, FLOPs and memory. Every text is escaped."""

from collections.abc import Callable
from html import escape

from paxlike.accounting.history import History
from paxlike.accounting.report.bars import Bar, bars
from paxlike.accounting.report.plot import Curve, Mark, plot
from paxlike.accounting.report.table import duration
from paxlike.accounting.units import gib, si

COLORS = 8
"""Colors of series in the style sheet, s0 to s7."""
CAUSE_COLORS = {
    "step": "c-step", "repeated steps": "c-repeated", "compile": "c-compile", "checkpoint": "c-checkpoint",
    "evaluation": "c-evaluation", "data stall": "c-data", "restart": "c-restart", "other": "c-other",
}  # fmt: skip


# ---- plots ---------------------------------------------------------------------------------------------------------------


def plots(runs: list[dict], histories: list[History], names: list[str]) -> str:
    several = len(runs) > 1

    def curves(series: str, **more) -> list[Curve]:
        return [
            Curve(name if several else series.replace("_", " "), k % COLORS, h.steps, h.series[series], **more)
            for k, (name, h) in enumerate(zip(names, histories, strict=True))
        ]

    marks = [
        Mark(f"{name + ', ' if several else ''}validation", k % COLORS if several else 1, *pair)
        for k, (name, h) in enumerate(zip(names, histories, strict=True))
        for pair in h.evaluations
    ]
    lines = [] if several else _restarts(histories[0])
    keys = [(name, k % COLORS, "") for k, name in enumerate(names)] if several else []
    loss_keys = keys or [("training", 0, ""), *([("validation", 1, "ring")] if marks else [])]
    loss = plot(curves("loss"), lambda v: f"{v:.4g}", marks=marks, lines=lines, zero=False, width=1260, height=300)
    told = [
        _chart("Loss, nats per token", loss, loss_keys, "wide", extra="rings: validation" if marks and several else ""),
        _chart("Step time", plot(curves("step_seconds"), duration, lines=lines), keys),
        _chart("Tokens per second", plot(curves("tokens_per_second"), short, lines=lines), keys),
    ]  # fmt: skip
    shares = []
    for k, (name, h) in enumerate(zip(names, histories, strict=True)):
        shares.append(Curve(f"{name} MFU" if several else "MFU", k % COLORS, h.steps, h.series["mfu"], raw=not several))
        shares.append(
            Curve(
                f"{name} HFU" if several else "HFU", k % COLORS if several else 1, h.steps, h.series["hfu"], True, False
            )
        )
    share_keys = [*keys, ("HFU dashed", -1, "dash")] if several else [("MFU", 0, ""), ("HFU", 1, "dash")]
    peaks = dict.fromkeys(run["utilization"][0]["peak"] for run in runs if run["utilization"])
    told.append(
        _chart("MFU (palm) and HFU (executed)", plot(shares, lambda v: f"{v:.1%}".replace(".0%", "%"), lines=lines),
               share_keys, extra="of " + "; ".join(peaks) if peaks else "")
    )  # fmt: skip
    return "".join(told)


def short(value: float) -> str:
    """`513 K`."""
    return si(value, "", 3).strip() if value else "0"


def _restarts(history: History) -> list[tuple[int, str]]:
    return [
        (a.first_step, f"attempt {n} went on from step {a.first_step:,}") for n, a in enumerate(history.attempts[1:], 2)
    ]


def _chart(
    title: str, drawn: tuple[str, str], keys: list[tuple[str, int, str]], style: str = "", extra: str = ""
) -> str:
    svg, told = drawn
    if not svg:
        return ""
    told = "; ".join(part for part in (told, extra) if part)
    items = "".join(
        f'<li class="s{color}"><i class="{mark}"></i><span>{escape(name)}</span></li>' for name, color, mark in keys
    )
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    return f'<figure class="card {style}"><h2>{title}</h2>{legend}{svg}<figcaption>{escape(told)}</figcaption></figure>'


# ---- bars ----------------------------------------------------------------------------------------------------------------


def bar_charts(runs: list[dict], names: list[str]) -> str:
    named = list(zip(runs, names, strict=True))
    times, parts = [], []
    colors = list(dict.fromkeys(part for run in runs for part in run["flops_by_part"] or {}))
    for run, name in named:
        if run["goodput"] and (wall := run["goodput"]["wall_seconds"]):
            segments = tuple((cause, s, CAUSE_COLORS[cause]) for cause, s in run["goodput"]["seconds"].items())
            times.append(Bar(name, segments, duration(wall)))
        if flops := run["flops_by_part"]:
            segments = tuple((part, n, f"s{colors.index(part) % COLORS}") for part, n in flops.items())
            parts.append(Bar(name, segments, _flops(sum(flops.values()))))
    memory = [bar for run, name in named for bar in _memory(run, name if len(runs) > 1 else "")]
    most = max((sum(value for _, value, _ in bar.segments) for bar in memory), default=0) or None
    devices = [(run["memory"] or {}).get("device") or {} for run in runs]
    limits = sorted({gib(device["limit"]) for device in devices if "limit" in device})
    limit = f"; a device has {' or '.join(limits)}" if limits else ""
    told = "a bar is a run's whole wall time; only steps that count are productive"
    return (
        bar_chart("Where the wall time went", times, duration, told)
        + bar_chart("FLOPs by part of the model, per token", parts, _flops, "matrix products as they run, forward and backward")
        + bar_chart(
            "Memory of a device: plan against use", memory, gib,
            f"plan: estimated before anything ran; program: laid out by the compiler for a step{limit}", most,
        )
    )  # fmt: skip


def _flops(value: float) -> str:
    return si(value, "FLOP")


def _memory(run: dict, name: str) -> list[Bar]:
    memory, found = run["memory"] or {}, []
    label = lambda what: f"{name} {what}".strip()  # noqa: E731
    if plan := memory.get("plan"):
        segments = tuple((part, size, f"s{k % COLORS}") for k, (part, size) in enumerate(plan["parts"].items()))
        found.append(Bar(label("plan"), segments, gib(plan["total"])))
    if compiled := memory.get("compiled"):
        fresh = compiled.get("outputs", 0) - compiled.get("aliased", 0)
        sizes = (
            ("arguments", compiled.get("arguments", 0)),
            ("outputs not in their place", fresh),
            ("temporaries", compiled.get("temporaries", 0)),
        )
        segments = tuple(
            (part, max(0, size), color) for (part, size), color in zip(sizes, ("s6", "c-other", "s5"), strict=True)
        )
        found.append(Bar(label("program"), segments, gib(compiled["peak"])))
    if "peak" in (memory.get("device") or {}):
        found.append(
            Bar(label("device"), (("at most in use", memory["device"]["peak"], "s7"),), gib(memory["device"]["peak"]))
        )
    return found


def bar_chart(
    title: str, drawn: list[Bar], show: Callable, caption: str, scale: float | None = None, limit: float | None = None
) -> str:
    """A card with bars (see `bars`) and what their colors mean; nothing where there are no bars."""
    if not drawn:
        return ""
    colors = {(name, color): [] for bar in drawn for name, value, color in bar.segments if value > 0}
    for bar in drawn:
        whole = sum(value for _, value, _ in bar.segments)
        for name, value, color in bar.segments:
            if value > 0:
                colors[name, color].append(f"{show(value)}, {value / whole:.1%}" if scale is None else show(value))
    alone = all(len(told) == 1 for told in colors.values())
    items = "".join(
        f'<li class="{color}"><i></i><span>{escape(name)}{" <b>" + escape(told[0]) + "</b>" if alone else ""}</span></li>'
        for (name, color), told in colors.items()
    )
    return (
        f'<figure class="card"><h2>{title}</h2>{bars(drawn, show, scale=scale, limit=limit)}'
        f'<ul class="legend after{" listed" if alone else ""}">{items}</ul><figcaption>{escape(caption)}</figcaption></figure>'
    )
