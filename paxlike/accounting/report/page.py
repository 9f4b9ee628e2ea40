"""The report as one HTML page. Every text in it is escaped."""

from html import escape

from paxlike.accounting.history import History
from paxlike.accounting.report.charts import COLORS, bar_charts, plots, short
from paxlike.accounting.report.document import document
from paxlike.accounting.report.table import duration, kind, labels, rows


def page(runs: list[dict], histories: list[History]) -> str:
    """HTML of the runs' summaries; histories are of the same runs, or empty where they are of given rates."""
    names = labels(runs)
    single = runs[0] if len(runs) == 1 else None
    parts = [_head(runs, names)]
    if single:
        parts.append(_cards(single))
    parts.append(_remarks(runs, names))
    if histories:
        parts.append(f'<div class="grid">{plots(runs, histories, names)}{bar_charts(runs, names)}</div>')
    parts.append(_table(runs, names))
    parts.append(
        "<footer>Written by <b>paxlike report</b>. MFU counts the model's FLOPs by the named convention, HFU those that ran, with what is "
        "computed again; both divide by the chips' dense peak. Goodput is the share of the wall time in steps that count.</footer>"
    )
    return document("report", f"{', '.join(names)} – report", "".join(parts))


# ---- above the plots -----------------------------------------------------------------------------------------------------


def _head(runs: list[dict], names: list[str]) -> str:
    if len(runs) > 1:
        shown = "".join(
            f'<li class="s{k % COLORS}"><i></i><span><b>{escape(name)}</b> {escape(_about(run))}</span></li>'
            for k, (name, run) in enumerate(zip(names, runs, strict=True))
        )
        return f'<div class="eyebrow">paxlike report</div><h1>{len(runs)} runs side by side</h1><ul class="legend">{shown}</ul>'
    about = escape(_about(runs[0]))
    return f'<div class="eyebrow">paxlike report</div><h1>{escape(names[0])}</h1><div class="quiet">{about}</div>'


def _about(run: dict) -> str:
    mesh = run["mesh"] if isinstance(run["mesh"], dict) else {}
    told = [
        run["device"],
        "mesh " + " × ".join(f"{axis} {n}" for axis, n in mesh.items()) if mesh else None,
        run["status"],
    ]
    return " · ".join(str(what) for what in told if what)


def _cards(run: dict) -> str:
    cards = []
    if run["loss"]:
        for what, key in (("validation loss", "evaluation"), ("training loss", "last")):
            if point := run["loss"][key]:
                cards.append((what, f"{point['loss']:.3f}", f"at step {point['step']:,}"))
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
            cards.append((kind(share), f"{share['fraction']:.1%}", share["formula"].partition(" = ")[2]))
    if run["goodput"]:
        good = run["goodput"]
        productive, wall = duration(good["seconds"]["step"]), duration(good["wall_seconds"])
        cards.append(("goodput", f"{good['fraction']:.1%}", f"{productive} of productive steps / {wall} of wall time"))
    shown = "".join(
        f'<div class="card"><div class="eyebrow">{escape(what)}</div><div class="figure">{escape(figure)}</div>'
        f"<small>{escape(small)}</small></div>"
        for what, figure, small in cards
    )
    return f'<div class="cards">{shown}</div>'


def _remarks(runs: list[dict], names: list[str]) -> str:
    told = ""
    for key, title, style in (("warnings", "Warnings", " warning"), ("notes", "Notes", "")):
        of = lambda name: f"<b>{escape(name)}</b>: " if len(runs) > 1 else ""  # noqa: E731
        lines = [
            f"<li>{of(name)}{escape(line)}</li>" for run, name in zip(runs, names, strict=True) for line in run[key]
        ]
        if lines:
            told += f'<div class="card notes{style}"><h2>{title}</h2><ul>{"".join(lines)}</ul></div>'
    return told


# ---- the table -------------------------------------------------------------------------------------------------------------


def _table(runs: list[dict], names: list[str]) -> str:
    heads = "".join(
        f'<th>{f"""<i class="s{k % COLORS}"></i>""" if len(runs) > 1 else ""}{escape(name)}</th>'
        for k, name in enumerate(names)
    )
    body = ""
    for title, asked in rows(runs):
        body += f'<tr class="section"><td>{escape(title)}</td>{"<td></td>" * len(runs)}</tr>'
        for what, cells in asked:
            beneath = [_formula(run, what) for run in runs]
            shown = "".join(f"<td>{escape(cell)}{small}</td>" for cell, small in zip(cells, beneath, strict=True))
            body += f"<tr><td>{escape(what)}</td>{shown}</tr>"
    return (
        f'<div class="card scroll" style="margin-top:16px"><h2>All figures</h2><table><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _formula(run: dict, what: str) -> str:
    """How a percentage of the row came about, to stand beneath it."""
    found = next((share for share in run["utilization"] if kind(share) == what), None)
    return f"<small>{escape(found['formula'].partition(' = ')[2])}</small>" if found else ""
