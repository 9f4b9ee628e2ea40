"""What pruning reports: a table of the best block of each size, and a page with every choice."""

from html import escape

from rich.table import Table

from paxlike.accounting.report.cards import card
from paxlike.accounting.report.document import document
from paxlike.adapt.prune import Drop, best

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 1180, 56, 20, 8, 44
HEIGHT, CELL = 560, 40
"""Largest height of all cells together and of one, in SVG units."""


def drops_table(drops: list[list[Drop]], chosen: Drop | None) -> Table:
    """The block with the smallest distance of each size, and the chosen one."""
    table = Table(title="The nearest input and output of a block")
    table.add_column("layers to drop", justify="right")
    table.add_column("block, from 0")
    table.add_column("angular distance", justify="right")
    table.add_column("")
    for of_size in drops:
        rows = [best(of_size)]
        if chosen and chosen in of_size and chosen not in rows:
            rows.append(chosen)
        for drop in rows:
            mark = "dropped" if drop == chosen else ""
            table.add_row(str(drop.layers), drop.name, f"{drop.distance:.4f}", mark)
    return table


def pruning_page(
    title: str, about: str, drops: list[list[Drop]], chosen: Drop | None, table: Table
) -> str:
    """The page of `paxlike prune`. about: on which text, and the losses."""
    heading = (
        f'<div class="eyebrow">paxlike prune</div><h1>{escape(title)}</h1>'
        f'<div class="quiet">{escape(about)}</div>'
    )
    return document("prune", title, "\n".join([heading, _heat_map(drops, chosen), card(table)]))


def _heat_map(drops: list[list[Drop]], chosen: Drop | None) -> str:
    """A cell for every block: its first layer from left to right, its size from the bottom up.

    As in figure 4 of the paper, colors show distances relative to blocks of the same size, from the
    smallest (dark) to the largest (light).
    """
    columns, rows = max(d.start for of_size in drops for d in of_size) + 1, len(drops)
    wide = (WIDTH - LEFT - RIGHT) / columns
    high = min(wide, CELL, HEIGHT / rows)
    bottom = TOP + high * rows
    place_x = lambda start: LEFT + wide * start  # noqa: E731
    place_y = lambda layers: bottom - high * layers  # noqa: E731
    every = max(1, columns // 40), max(1, round(14 / high))
    parts = [
        f'<text x="{WIDTH - RIGHT}" y="{bottom + 36:.1f}" text-anchor="end">first layer dropped'
        "</text>"
    ]
    for start in range(0, columns, every[0]):
        middle = place_x(start + 0.5)
        parts.append(
            f'<text x="{middle:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{start}</text>'
        )
    for of_size in drops:
        layers, y = of_size[0].layers, place_y(of_size[0].layers)
        if layers % every[1] == 0:
            middle = y + high / 2 + 4
            parts.append(f'<text x="{LEFT - 7}" y="{middle:.1f}" text-anchor="end">{layers}</text>')
        low, top = (f(d.distance for d in of_size) for f in (min, max))
        for drop in of_size:
            dark = (top - drop.distance) / (top - low) if top > low else 1.0
            box = f'x="{place_x(drop.start):.2f}" y="{y:.2f}" width="{wide:.2f}"'
            parts.append(
                f'<rect class="segment s0" {box} height="{high:.2f}" '
                f'fill-opacity="{0.06 + 0.94 * dark:.3f}"><title>{drop.name}: '
                f"{drop.distance:.4f}</title></rect>"
            )
    for drop in [best(of_size) for of_size in drops] + ([chosen] if chosen else []):
        place = f'cx="{place_x(drop.start + 0.5):.1f}" cy="{place_y(drop.layers - 0.5):.1f}"'
        kind = "point" if drop == chosen else "mark"
        parts.append(f'<circle class="{kind} s1" {place} r="{min(4.5, high / 3):.1f}"/>')
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {bottom + BOTTOM:.0f}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
    keys = '<li class="s1"><i class="ring"></i><span>smallest distance of its size</span></li>'
    if chosen:
        keys += '<li class="s1"><i></i><span>dropped</span></li>'
    caption = "rows: number of layers dropped; dark: small distance, relative to its row"
    return (
        '<figure class="card"><h2>Every block of layers</h2>'
        f'<ul class="legend">{keys}</ul>{svg}<figcaption>{caption}</figcaption></figure>'
    )
