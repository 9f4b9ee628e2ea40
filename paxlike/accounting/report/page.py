"""Renders a report as one HTML page. Escapes all text."""

from html import escape

from paxlike.accounting.history import History
from paxlike.accounting.report.charts import COLORS, bar_charts, plots, short
from paxlike.accounting.report.document import document
from paxlike.accounting.report.router_charts import router_charts
from paxlike.accounting.report.table import duration, kind, labels, rows


def page(runs: list[dict], histories: list[History]) -> str:
    """Returns the HTML page of the runs' summaries.

    histories: those of the same runs, or [] for summaries from given rates (`from_rate`).
    """
    names = labels(runs)
    single = runs[0] if len(runs) == 1 else None
    parts = [_head(runs, names)]
    if single:
        parts.append(_cards(single))
    parts.append(_notes(runs, names))
    if histories:
        parts.append(
            f'<div class="grid">{plots(runs, histories, names)}{router_charts(histories, names)}'
            f"{bar_charts(runs, names)}</div>"
        )
    parts.append(_table(runs, names))
    parts.append(
        "<footer>Written by <b>paxlike report</b>. MFU counts the model's FLOPs by the named "
        "convention; HFU counts the FLOPs that ran, including recomputation. Both are relative to "
        "the chips' dense peak. Goodput is the share of the wall time spent on steps that count."
        "</footer>"
    )
    return document("report", f"{', '.join(names)} – report", "".join(parts))


# ---- above the plots -----------------------------------------------------------------------------


def _head(runs: list[dict], names: list[str]) -> str:
    if len(runs) > 1:
        shown = "".join(
            f'<li class="s{k % COLORS}"><i></i><span><b>{escape(name)}</b> '
            f"{escape(_about(run))}</span></li>"
            for k, (name, run) in enumerate(zip(names, runs, strict=True))
        )
        return (
            f'<div class="eyebrow">paxlike report</div><h1>{len(runs)} runs compared</h1>'
            f'<ul class="legend">{shown}</ul>'
        )
    about = escape(_about(runs[0]))
    return (
        f'<div class="eyebrow">paxlike report</div><h1>{escape(names[0])}</h1>'
        f'<div class="quiet">{about}</div>'
    )


def _about(run: dict) -> str:
    mesh = run["mesh"] if isinstance(run["mesh"], dict) else {}
    parts = [
        run["device"],
        "mesh " + " × ".join(f"{axis} {n}" for axis, n in mesh.items()) if mesh else None,
        run["status"],
    ]
    return " · ".join(str(part) for part in parts if part)


def _cards(run: dict) -> str:
    cards = []
    if run["loss"]:
        for label, key in (("validation loss", "evaluation"), ("training loss", "last")):
            if point := run["loss"][key]:
                cards.append((label, f"{point['loss']:.3f}", f"at step {point['step']:,}"))
                break
    if rate := run["tokens_per_second"]:
        step = run["step_seconds"]
        cards.append(
            (
                "tokens per second",
                short(rate["median"]),
                f"median; a step takes {duration(step['median'])}" if step else "",
            )
        )
    for share in run["utilization"]:
        if kind(share) == "MFU palm" or share["name"] == "HFU":
            cards.append(
                (kind(share), f"{share['fraction']:.1%}", share["formula"].partition(" = ")[2])
            )
    if run["goodput"]:
        good = run["goodput"]
        productive, wall = duration(good["seconds"]["step"]), duration(good["wall_seconds"])
        cards.append(
            (
                "goodput",
                f"{good['fraction']:.1%}",
                f"{productive} of productive steps / {wall} of wall time",
            )
        )
    shown = "".join(
        f'<div class="card"><div class="eyebrow">{escape(label)}</div>'
        f'<div class="figure">{escape(figure)}</div><small>{escape(small)}</small></div>'
        for label, figure, small in cards
    )
    return f'<div class="cards">{shown}</div>'


def _notes(runs: list[dict], names: list[str]) -> str:
    shown = ""
    for key, title, style in (("warnings", "Warnings", " warning"), ("notes", "Notes", "")):
        lines = ""
        for run, name in zip(runs, names, strict=True):
            prefix = f"<b>{escape(name)}</b>: " if len(runs) > 1 else ""
            lines += "".join(f"<li>{prefix}{escape(line)}</li>" for line in run[key])
        if lines:
            shown += f'<div class="card notes{style}"><h2>{title}</h2><ul>{lines}</ul></div>'
    return shown


# ---- the table -----------------------------------------------------------------------------------


def _table(runs: list[dict], names: list[str]) -> str:
    heads = ""
    for k, name in enumerate(names):
        color = f'<i class="s{k % COLORS}"></i>' if len(runs) > 1 else ""
        heads += f"<th>{color}{escape(name)}</th>"
    body = ""
    for title, section in rows(runs):
        body += f'<tr class="section"><td>{escape(title)}</td>{"<td></td>" * len(runs)}</tr>'
        for label, cells in section:
            shown = "".join(
                f"<td>{escape(cell)}{_formula(run, label)}</td>"
                for cell, run in zip(cells, runs, strict=True)
            )
            body += f"<tr><td>{escape(label)}</td>{shown}</tr>"
    return (
        '<div class="card scroll" style="margin-top:16px"><h2>All figures</h2>'
        f"<table><thead><tr><th></th>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _formula(run: dict, label: str) -> str:
    """Returns the formula of a row's percentage, or "" if the row has no formula."""
    found = next((share for share in run["utilization"] if kind(share) == label), None)
    return f"<small>{escape(found['formula'].partition(' = ')[2])}</small>" if found else ""
