"""The sharding rules as a table to read: every parameter, its shape, where its dimensions lie, what a device holds."""

import math
from collections.abc import Iterable, Mapping

from rich import box
from rich.table import Table

from paxlike.parallel.axes import letters_of, logical_axes
from paxlike.parallel.rules import Axis, shards, weight_spec


def sharding_rows(parameters: Iterable[tuple[str, tuple[int, ...]]], mesh: Mapping[str, int]) -> list[tuple]:
    """(name, shape, places, shape on a device) of each parameter, given as (name, shape); stacked ones with their layers first."""
    rows = []
    for name, shape in parameters:
        places = weight_spec("L" * name.startswith("blocks/") + letters_of(name), shape, mesh)
        rows.append(
            (name, shape, places, tuple(n // shards(place, mesh) for n, place in zip(shape, places, strict=True)))
        )
    return rows


def sharding_table(parameters: Iterable[tuple[str, tuple[int, ...]]], mesh: Mapping[str, int]) -> Table:
    """Raises ConfigError where a parameter does not fit the mesh."""
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
    table = Table(
        title=f"Sharding on {sizes}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in ("parameter", "shape", "T5X's logical axes", "lies on", "of it on a device"):
        table.add_column(column)
    for name, shape, places, local in sharding_rows(parameters, mesh):
        share = f"{' x '.join(map(str, local))} (1/{math.prod(shape) // math.prod(local):,})"
        axes = ", ".join(logical_axes("L" * name.startswith("blocks/") + letters_of(name)))
        table.add_row(name, " x ".join(map(str, shape)), axes, ", ".join(map(_place, places)), share)
    return table


def _place(place: Axis) -> str:
    return "-" if place is None else place if isinstance(place, str) else " and ".join(place)
