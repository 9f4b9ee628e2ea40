"""The sharding rules as a table: each parameter, its shape, mesh axes and local shape."""

import math
from collections.abc import Iterable, Mapping

from rich import box
from rich.table import Table

from paxlike.parallel.axes import logical_axes, stored_letters
from paxlike.parallel.rules import Axis, shards, weight_spec


def sharding_rows(
    parameters: Iterable[tuple[str, tuple[int, ...]]], mesh: Mapping[str, int]
) -> list[tuple]:
    """Returns (name, shape, mesh axes of each dimension, local shape) for each parameter.

    parameters: (name, stored shape).
    """
    rows = []
    for name, shape in parameters:
        places = weight_spec(stored_letters(name), shape, mesh)
        rows.append(
            (
                name,
                shape,
                places,
                tuple(n // shards(place, mesh) for n, place in zip(shape, places, strict=True)),
            )
        )
    return rows


def sharding_table(
    parameters: Iterable[tuple[str, tuple[int, ...]]], mesh: Mapping[str, int]
) -> Table:
    """Renders `sharding_rows`. Raises ConfigError if a parameter does not fit the mesh."""
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
    table = Table(
        title=f"Sharding on {sizes}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("parameter", "shape", "T5X logical axes", "mesh axes", "local shape"):
        table.add_column(column)
    for name, shape, places, local in sharding_rows(parameters, mesh):
        share = f"{' x '.join(map(str, local))} (1/{math.prod(shape) // math.prod(local):,})"
        axes = ", ".join(logical_axes(stored_letters(name)))
        table.add_row(
            name, " x ".join(map(str, shape)), axes, ", ".join(map(_place, places)), share
        )
    return table


def _place(place: Axis) -> str:
    return "-" if place is None else place if isinstance(place, str) else " and ".join(place)
