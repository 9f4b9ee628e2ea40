"""The page's charts: plots over steps, and bars of wall time, FLOPs and memory. Escapes all text.

Plots have one curve per run.
"""

from collections.abc import Callable
from html import escape

from paxlike.accounting.history import History
from paxlike.accounting.report.bars import Bar, bars
from paxlike.accounting.report.plot import Curve, Mark, plot
from paxlike.accounting.report.table import duration
from paxlike.accounting.units import gib, si

COLORS = 8
"""Number of series colors in the style sheet: s0 to s7."""
CAUSE_COLORS = {
    "step": "c-step",
    "repeated steps": "c-repeated",
    "compile": "c-compile",
    "checkpoint": "c-checkpoint",
    "evaluation": "c-evaluation",
    "data stall": "c-data",
    "restart": "c-restart",
    "other": "c-other",
}


# ---- plots ---------------------------------------------------------------------------------------


def plots(runs: list[dict], histories: list[History], names: list[str]) -> str:
    """Returns the cards with plots over steps. `names` are the labels of the runs."""
    named = list(zip(names, histories, strict=True))
    several = len(runs) > 1
    lines = [] if several else restarts(histories[0])
    keys = [(name, k % COLORS, "") for k, (name, _) in enumerate(named)] if several else []

    def over_steps(series: str, show: Callable[[float], str]) -> tuple[str, str]:
        curves = [
            Curve(
                name if several else series.replace("_", " "),
                k % COLORS,
                history.steps,
                history.series[series],
            )
            for k, (name, history) in enumerate(named)
        ]
        return plot(curves, show, lines=lines)

    utilization = plot(_utilization_curves(named), percent, lines=lines)
    utilization_keys = (
        [*keys, ("HFU dashed", -1, "dash")] if several else [("MFU", 0, ""), ("HFU", 1, "dash")]
    )
    peaks = dict.fromkeys(run["utilization"][0]["peak"] for run in runs if run["utilization"])
    return (
        _loss_chart(named, keys, lines)
        + chart("Step time", over_steps("step_seconds", duration), keys)
        + chart("Tokens per second", over_steps("tokens_per_second", short), keys)
        + chart(
            "MFU (palm) and HFU (executed)",
            utilization,
            utilization_keys,
            note="relative to " + "; ".join(peaks) if peaks else "",
        )
    )


def short(value: float) -> str:
    """Formats a count with three digits, such as `513 K`."""
    return si(value, "", 3).strip() if value else "0"


def percent(value: float) -> str:
    """Formats a fraction: `46.2%`, `50%`."""
    return f"{value:.1%}".replace(".0%", "%")


def _loss_chart(
    named: list[tuple[str, History]], keys: list[tuple[str, int, str]], lines: list[tuple[int, str]]
) -> str:
    several = len(named) > 1
    curves = [
        Curve(name if several else "loss", k % COLORS, history.steps, history.series["loss"])
        for k, (name, history) in enumerate(named)
    ]
    marks = [
        Mark(f"{name}, validation" if several else "validation", k % COLORS if several else 1, *at)
        for k, (name, history) in enumerate(named)
        for at in history.evaluations
    ]
    drawn = plot(
        curves,
        lambda loss: f"{loss:.4g}",
        marks=marks,
        lines=lines,
        zero=False,
        width=1260,
        height=300,
    )
    keys = keys or [("training", 0, ""), *([("validation", 1, "ring")] if marks else [])]
    note = "rings: validation" if marks and several else ""
    return chart("Loss, nats per token", drawn, keys, "wide", note)


def _utilization_curves(named: list[tuple[str, History]]) -> list[Curve]:
    several = len(named) > 1
    curves = []
    for k, (name, history) in enumerate(named):
        mfu, hfu = (f"{name} MFU", f"{name} HFU") if several else ("MFU", "HFU")
        color, steps, series = k % COLORS, history.steps, history.series
        curves += [
            Curve(mfu, color, steps, series["mfu"], raw=not several),
            Curve(hfu, color if several else 1, steps, series["hfu"], dashed=True, raw=False),
        ]
    return curves


def restarts(history: History) -> list[tuple[int, str]]:
    """Returns the vertical lines of a plot: (step, what happened)."""
    return [
        (attempt.first_step, f"attempt {n} resumed from step {attempt.first_step:,}")
        for n, attempt in enumerate(history.attempts[1:], 2)
    ]


def chart(
    title: str,
    drawn: tuple[str, str],
    keys: list[tuple[str, int, str]],
    style: str = "",
    note: str = "",
) -> str:
    """Returns a card with a plot, or "" for an empty plot.

    drawn: (SVG, caption). keys: (name, color, mark) of each entry of the legend. note: is added to
    the caption.
    """
    svg, caption = drawn
    if not svg:
        return ""
    caption = "; ".join(part for part in (caption, note) if part)
    items = "".join(
        f'<li class="s{color}"><i class="{mark}"></i><span>{escape(name)}</span></li>'
        for name, color, mark in keys
    )
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    return (
        f'<figure class="card {style}"><h2>{title}</h2>{legend}{svg}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


# ---- bars ----------------------------------------------------------------------------------------


def bar_charts(runs: list[dict], names: list[str]) -> str:
    """Returns the cards with bars of wall time, FLOPs and memory."""
    named = list(zip(runs, names, strict=True))
    memory = [bar for run, name in named for bar in _memory(run, name if len(runs) > 1 else "")]
    largest = max((sum(value for _, value, _ in bar.segments) for bar in memory), default=0) or None
    devices = [(run["memory"] or {}).get("device") or {} for run in runs]
    limits = sorted({gib(device["limit"]) for device in devices if "limit" in device})
    limit = f"; a device has {' or '.join(limits)}" if limits else ""
    return (
        bar_chart(
            "Wall time by cause",
            _wall_times(named),
            duration,
            "each bar is the whole wall time of a run; only `step` counts as productive",
        )
        + bar_chart(
            "FLOPs by part of the model, per token",
            _flops_by_part(named),
            _flops,
            "matmuls as executed, forward and backward",
        )
        + bar_chart(
            "Memory of a device: planned and used",
            memory,
            gib,
            "plan: estimate before the start; program: the compiler's memory layout of a step"
            + limit,
            largest,
        )
    )


def _flops(value: float) -> str:
    return si(value, "FLOP")


def _wall_times(named: list[tuple[dict, str]]) -> list[Bar]:
    found = []
    for run, name in named:
        if run["goodput"] and (wall := run["goodput"]["wall_seconds"]):
            seconds = run["goodput"]["seconds"]
            segments = tuple((cause, s, CAUSE_COLORS[cause]) for cause, s in seconds.items())
            found.append(Bar(name, segments, duration(wall)))
    return found


def _flops_by_part(named: list[tuple[dict, str]]) -> list[Bar]:
    parts = list(dict.fromkeys(part for run, _ in named for part in run["flops_by_part"] or {}))
    color = {part: f"s{k % COLORS}" for k, part in enumerate(parts)}
    found = []
    for run, name in named:
        if flops := run["flops_by_part"]:
            segments = tuple((part, n, color[part]) for part, n in flops.items())
            found.append(Bar(name, segments, _flops(sum(flops.values()))))
    return found


def _memory(run: dict, name: str) -> list[Bar]:
    """Returns up to three bars of a run: plan, program and device."""
    memory, found = run["memory"] or {}, []

    def add(label: str, segments: tuple[tuple[str, float, str], ...], total: float) -> None:
        found.append(Bar(f"{name} {label}".strip(), segments, gib(total)))

    if plan := memory.get("plan"):
        parts = enumerate(plan["parts"].items())
        segments = tuple((part, size, f"s{k % COLORS}") for k, (part, size) in parts)
        add("plan", segments, plan["total"])
    if compiled := memory.get("compiled"):
        not_aliased = compiled.get("outputs", 0) - compiled.get("aliased", 0)
        segments = (
            ("arguments", max(0, compiled.get("arguments", 0)), "s6"),
            ("outputs that do not overwrite arguments", max(0, not_aliased), "c-other"),
            ("temporaries", max(0, compiled.get("temporaries", 0)), "s5"),
        )
        add("program", segments, compiled["peak"])
    device = memory.get("device") or {}
    if "peak" in device:
        add("device", (("peak in use", device["peak"], "s7"),), device["peak"])
    return found


def bar_chart(
    title: str,
    drawn: list[Bar],
    show: Callable[[float], str],
    caption: str,
    scale: float | None = None,
    limit: float | None = None,
) -> str:
    """Returns a card with bars and a legend, or "" if there are no bars.

    The legend lists the values if each color occurs in one bar only. show, scale, limit: as in
    `bars`.
    """
    if not drawn:
        return ""
    values: dict[tuple[str, str], list[str]] = {}
    for bar in drawn:
        whole = sum(value for _, value, _ in bar.segments)
        for name, value, color in bar.segments:
            if value > 0:
                share = f", {value / whole:.1%}" if scale is None else ""
                values.setdefault((name, color), []).append(f"{show(value)}{share}")
    listed = all(len(found) == 1 for found in values.values())
    items = ""
    for (name, color), found in values.items():
        shown = f" <b>{escape(found[0])}</b>" if listed else ""
        items += f'<li class="{color}"><i></i><span>{escape(name)}{shown}</span></li>'
    return (
        f'<figure class="card"><h2>{title}</h2>{bars(drawn, show, scale=scale, limit=limit)}'
        f'<ul class="legend after{" listed" if listed else ""}">{items}</ul>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
