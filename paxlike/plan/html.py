"""A plan, or a sweep, as a page in one file: no script, nothing loaded from elsewhere."""

import io
from html import escape

from rich.console import Console
from rich.table import Table

from paxlike.accounting.units import gib
from paxlike.plan import page, svg

GiB = 2**30

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 900px; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem } .yes { color: #00694c } .no { color: #a33d00 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #ddd } td.number, th.number { text-align: right }
svg text { font: 12px system-ui, sans-serif; fill: currentColor }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #161616 } td, th { border-color: #444 } .yes { color: #4fc79b } .no { color: #ff9a5c }
}
"""


def plan_page(told: dict) -> str:
    """The page of `result.plan_of`."""
    memory = told["memory"]
    parts = [(name, float(size), gib(size)) for name, size in memory["parts"].items() if size]
    body = [_heading(told), _verdict(page.verdict(told), told["fits"])]
    if parts:
        body.append(svg.bar(parts, memory["usable"]))
    for table in page.tables(told):
        body.append(table if isinstance(table, str) else _table(table))
    return _document(f"{told['config']} on {told['cluster']['name']}", body)


def sweep_page(name: str, cluster: str, usable: int | None, rows: list[dict]) -> str:
    """The page of `sweep.sweep`."""
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
    body = [f"<h1>{escape(name)} on {escape(cluster)}</h1>"]
    if points:
        body.append(svg.scatter(points, usable / GiB if usable else None))
    body.append(_table(page.sweep_table(rows)))
    return _document(f"{name} on {cluster}", body)


def _label(row: dict) -> str:
    return f"model {row['model']}, remat {row['remat']}, batch {row['batch_size']:,}"


def _heading(told: dict) -> str:
    return f"<h1>{escape(told['config'])} on {escape(told['cluster']['name'])}</h1><p>{escape(page.summary(told))}</p>"


def _verdict(text: str, fits: bool | None) -> str:
    return f'<h2 class="{"no" if fits is False else "yes"}">{escape(text)}</h2>'


def _table(table: Table) -> str:
    """A table of the terminal's page as HTML."""
    title = f"<h2>{escape(str(table.title))}</h2>" if table.title else ""
    kinds = [' class="number"' if column.justify == "right" else "" for column in table.columns]
    head = "".join(
        f"<th{kind}>{escape(str(column.header))}</th>" for kind, column in zip(kinds, table.columns, strict=True)
    )
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    rows = [
        "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        for row in zip(*columns, strict=True)
    ]
    return (
        title
        + "<table>"
        + (f"<tr>{head}</tr>" if table.show_header else "")
        + "".join(f"<tr>{row}</tr>" for row in rows)
        + "</table>"
    )


def _plain(cell: object) -> str:
    if isinstance(cell, str):
        return cell
    console = Console(file=io.StringIO(), width=200)
    console.print(cell, end="")
    return console.file.getvalue()


def _document(title: str, body: list[str]) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )
