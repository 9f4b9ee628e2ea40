"""Terminal output as parts of a page."""

import io
from html import escape

from rich.console import Console
from rich.table import Table


def card(part: Table | str) -> str:
    """Terminal output as a card. A string is a sentence."""
    inside = f"<p>{escape(part.strip())}</p>" if isinstance(part, str) else _table(part)
    return f'<div class="card scroll part">{inside}</div>'


def _table(table: Table) -> str:
    """A rich table as HTML."""
    title = f"<h2>{escape(str(table.title))}</h2>" if table.title else ""
    kinds = [' class="number"' if column.justify == "right" else "" for column in table.columns]
    head = "".join(
        f"<th{kind}>{escape(str(column.header))}</th>"
        for kind, column in zip(kinds, table.columns, strict=True)
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
    text = io.StringIO()
    Console(file=text, width=200).print(cell, end="")
    return text.getvalue()
