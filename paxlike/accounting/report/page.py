"""The report as one HTML page that needs nothing else: no script, no font, no address. Every text in it is escaped."""

import os
import tempfile
from html import escape
from pathlib import Path

from paxlike.accounting.history import History
from paxlike.accounting.report.charts import COLORS, bar_charts, plots, short
from paxlike.accounting.report.style import CSS
from paxlike.accounting.report.table import duration, kind, labels, rows
from paxlike.config import UserError

GENERATOR = '<meta name="generator" content="paxlike report">'


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
    title = escape(", ".join(names))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{GENERATOR}'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title} – report</title>'
        f"<style>{CSS}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def write_page(path: Path, html: str) -> None:
    """Writes through a temporary name. Raises UserError where the name is taken by something else than a report."""
    if path.is_dir() or (path.exists() and GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:2000]):
        raise UserError(f"{path} exists and is no page of `paxlike report`: it is left alone. Give another --html.")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} to. Make it, or give another --html.")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(html)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
