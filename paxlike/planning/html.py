"""A plan or a sweep as one HTML file, in the style of the report."""

from html import escape

from paxlike.accounting.report.bars import Bar
from paxlike.accounting.report.cards import card
from paxlike.accounting.report.charts import COLORS, bar_chart
from paxlike.accounting.report.document import document
from paxlike.accounting.units import GiB, gib
from paxlike.planning import tables
from paxlike.planning.compile import Facts
from paxlike.planning.lanes import lanes
from paxlike.planning.scatter_plot import scatter
from paxlike.planning.simulated_step import Step
from paxlike.planning.step_picture import step_picture


def plan_page(result: dict, facts: Facts, step: Step) -> str:
    """The page of `result.plan_of`."""
    title = f"{result['config']} on {result['cluster']['name']}"
    fits = "no" if result["fits"] is False else "yes"
    body = [
        _heading(title, tables.summary(result)),
        f'<p class="figure {fits}">{escape(tables.verdict(result))}</p>',
    ]
    table, *others = map(card, tables.tables(result))
    drawn = _memory(result["memory"])
    body.append(f'<div class="grid">{drawn}{table}</div>' if drawn else table)
    if step.timeline.step:
        body.append(step_picture(lanes(facts, step), step.timeline.step, _zoom(step)))
    body += others
    return document("plan", title, "\n".join(body))


def sweep_page(name: str, cluster: str, usable: int | None, rows: list[dict]) -> str:
    """The page of `sweep.sweep`."""
    title = f"{name} on {cluster}"
    points = [
        (
            row["needed"] / GiB,
            100 * row["mfu"],
            f"model {row['model']}",
            f"{_label(row)}: {gib(row['needed'])}, MFU {row['mfu']:.1%}",
        )
        for row in rows
        if "mfu" in row
    ]
    body = [_heading(title, f"{len(rows)} meshes, remat policies and batch sizes, each compiled")]
    if points:
        body.append(scatter(points, usable / GiB if usable else None))
    body.append(card(tables.sweep_table(rows)))
    return document("plan", title, "\n".join(body))


def _zoom(step: Step) -> tuple[float, float] | None:
    """The time of one of the longest iterations of a loop: a layer of the backward pass."""
    iterations = step.timeline.iterations
    if not iterations:
        return None
    longest = max(end - begin for begin, end in iterations)
    alike = [i for i in iterations if i[1] - i[0] > 0.99 * longest]
    return alike[len(alike) // 2]


def _label(row: dict) -> str:
    return f"model {row['model']}, remat {row['remat']}, batch {row['batch_size']:,}"


def _heading(title: str, about: str) -> str:
    return (
        f'<div class="eyebrow">paxlike plan</div><h1>{escape(title)}</h1>'
        f'<div class="quiet">{escape(about)}</div>'
    )


def _memory(memory: dict) -> str:
    """The parts of a device's memory as a bar, with a line at the limit."""
    parts = [(name, float(size)) for name, size in memory["parts"].items() if size]
    if not parts:
        return ""
    whole, usable = sum(size for _, size in parts), memory["usable"]
    bar = Bar(
        "a device",
        tuple((name, size, f"s{k % COLORS}") for k, (name, size) in enumerate(parts)),
        gib(whole),
    )
    result = (
        f"dashed: the {gib(usable)} usable by a program"
        if usable
        else "the memory limit is not known"
    )
    return bar_chart("Memory by part", [bar], gib, result, max(whole, usable or 0), usable)
