"""What pruning reports: a table of the best choices, and a page with every choice."""

from html import escape
from typing import NamedTuple

from rich.table import Table

from paxlike.accounting.report.cards import card
from paxlike.accounting.report.document import document
from paxlike.adapt.prune import Drop, best

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 1180, 56, 20, 8, 44
HEIGHT, CELL = 560, 40
"""Largest height of all cells together and of one, in SVG units."""


def drops_table(drops: list[list[Drop]], chosen: Drop | None) -> Table:
    """Of every number of layers those with the smallest distance, and the chosen ones."""
    table = Table(title="Layers with the smallest angular distance")
    table.add_column("number", justify="right")
    table.add_column("layers, from 0")
    table.add_column("angular distance", justify="right")
    if chosen:
        table.add_column("")
    for of_size in drops:
        rows = [best(of_size)]
        if chosen and chosen in of_size and chosen not in rows:
            rows.append(chosen)
        for drop in rows:
            marks = ["dropped" if drop == chosen else ""] if chosen else []
            table.add_row(str(drop.layers), drop.name, f"{drop.distance:.4f}", *marks)
    return table


def _all_drops(drops: list[list[Drop]]) -> Table:
    """Every choice: one row for a number of layers, with the distance at each first layer."""
    table = Table(title="Angular distances by the first layer dropped")
    table.add_column("number", justify="right")
    table.add_column("first layer: distance")
    for of_size in drops:
        cells = (f"{drop.start}: {drop.distance:.4f}" for drop in of_size)
        table.add_row(str(of_size[0].layers), ", ".join(cells))
    return table


def pruning_page(
    title: str, about: str, drops: list[list[Drop]], chosen: Drop | None, table: Table
) -> str:
    """The page of `paxlike prune`. about: on which text, and the losses."""
    heading = (
        f'<div class="eyebrow">paxlike prune</div><h1>{escape(title)}</h1>'
        f'<div class="quiet">{escape(about)}</div>'
    )
    parts = [heading, _heat_map(drops, chosen), card(table), card(_all_drops(drops))]
    return document("prune", title, "\n".join(parts))


class _Grid(NamedTuple):
    """Places of cells: the first layer from left to right, the number of layers from the bottom."""

    wide: float
    high: float
    bottom: float

    def x(self, start: float) -> float:
        return LEFT + self.wide * start

    def y(self, layers: float) -> float:
        return self.bottom - self.high * layers


def _heat_map(drops: list[list[Drop]], chosen: Drop | None) -> str:
    """A cell for every choice. Colors compare choices of the same number of layers, from the
    smallest distance (dark) to the largest.
    """
    columns, rows = max(drop.start for of_size in drops for drop in of_size) + 1, len(drops)
    wide = (WIDTH - LEFT - RIGHT) / columns
    high = min(wide, CELL, HEIGHT / rows)
    grid = _Grid(wide, high, TOP + high * rows)
    cells = [_cell(grid, drop, of_size) for of_size in drops for drop in of_size]
    shown = dict.fromkeys([*map(best, drops), *([chosen] if chosen else [])])
    marks = [_mark(grid, drop, drop == chosen) for drop in shown]
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {grid.bottom + BOTTOM:.0f}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg">{_labels(grid, columns, rows)}{"".join(cells)}'
        f"{''.join(marks)}</svg>"
    )
    keys = '<li class="s1"><i class="ring"></i><span>smallest distance of its row</span></li>'
    if chosen:
        keys += '<li class="s1"><i></i><span>dropped</span></li>'
    caption = "rows: number of layers dropped; dark: small distance, relative to its row"
    return (
        '<figure class="card"><h2>Angular distance of every choice</h2>'
        f'<ul class="legend">{keys}</ul>{svg}<figcaption>{caption}</figcaption></figure>'
    )


def _labels(grid: _Grid, columns: int, rows: int) -> str:
    parts = [
        f'<text x="{WIDTH - RIGHT}" y="{grid.bottom + 36:.1f}" text-anchor="end">first layer '
        "dropped</text>"
    ]
    for start in range(0, columns, max(1, columns // 40)):
        place = f'x="{grid.x(start + 0.5):.1f}" y="{grid.bottom + 16:.1f}"'
        parts.append(f'<text {place} text-anchor="middle">{start}</text>')
    every = max(1, round(14 / grid.high))
    for layers in range(every, rows + 1, every):
        place = f'x="{LEFT - 7}" y="{grid.y(layers - 0.5) + 4:.1f}"'
        parts.append(f'<text {place} text-anchor="end">{layers}</text>')
    return "".join(parts)


def _cell(grid: _Grid, drop: Drop, of_size: list[Drop]) -> str:
    low, high = (f(other.distance for other in of_size) for f in (min, max))
    dark = (high - drop.distance) / (high - low) if high > low else 1.0
    place = f'x="{grid.x(drop.start):.2f}" y="{grid.y(drop.layers):.2f}"'
    size = f'width="{grid.wide:.2f}" height="{grid.high:.2f}"'
    return (
        f'<rect class="segment s0" {place} {size} fill-opacity="{0.06 + 0.94 * dark:.3f}">'
        f"<title>{drop.name}: {drop.distance:.4f}</title></rect>"
    )


def _mark(grid: _Grid, drop: Drop, chosen: bool) -> str:
    place = f'cx="{grid.x(drop.start + 0.5):.1f}" cy="{grid.y(drop.layers - 0.5):.1f}"'
    kind = "point" if chosen else "mark"
    return f'<circle class="{kind} s1" {place} r="{min(4.5, grid.high / 3):.1f}"/>'
