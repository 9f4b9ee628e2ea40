"""The communication of a plan as terminal tables."""

from rich import box
from rich.table import Table

from paxlike.accounting.units import gib, si
from paxlike.planning.lanes import short_name


def communication_tables(result: dict) -> list[Table]:
    """The collectives, the exposed time by mesh axis, and the most exposed collectives."""
    found = [_collectives(result["collectives"])]
    if result.get("communication"):
        found.append(_by_axis(result["communication"]))
    if result.get("most_exposed"):
        found.append(_most_exposed(result["most_exposed"]))
    return found


def new_table(title: str, *columns: str) -> Table:
    """A table. A column whose name begins with `>` holds numbers."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_header=any(columns),
    )
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left")
    return table


def _by_axis(rows: list[dict]) -> Table:
    table = new_table(
        "Communication by mesh axis, in a step", "axis", "kind", ">sent", ">hidden", ">exposed"
    )
    for row in rows:
        times = (_seconds(row[name]) for name in ("sent", "hidden", "exposed"))
        table.add_row(row["axis"], row["kind"], *times)
    table.add_section()
    sums = (_seconds(sum(r[name] for r in rows)) for name in ("sent", "hidden", "exposed"))
    table.add_row("all", "", *sums)
    return table


def _most_exposed(rows: list[dict]) -> Table:
    table = new_table(
        "Most exposed collectives", "what", "axis", ">exposed", ">sent", "computed meanwhile"
    )
    for row in rows:
        beside = "\n".join(f"{_short(w)}: {_seconds(w['seconds'])}" for w in row["beside"])
        what = f"{row['kind']} of {gib(row['bytes'])}, {_times(row['times'])}\n{_short(row)}"
        exposed, sent = _seconds(row["exposed"]), _seconds(row["sent"])
        table.add_row(what, row["axis"], exposed, sent, beside or "nothing")
    return table


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _short(row: dict) -> str:
    return short_name(row["op_name"], row["name"])


def _seconds(value: float) -> str:
    return si(value, "s", 3) if value else "0 s"


def _collectives(rows: list[dict], least: float = 1e-3) -> Table:
    table = new_table(
        "Collectives of a step, on one device",
        "kind",
        "axis",
        "in a loop",
        "type",
        ">bytes",
        ">times",
        ">at best",
        "over",
        ">exposed",
    )
    total = sum(row["seconds"] for row in rows)
    shown = [row for row in rows if row["seconds"] >= least * total or not total]
    for row in shown:
        table.add_row(
            row["kind"],
            row["axis"],
            "yes" if row["in_layer_loop"] else "no",
            row["dtype"],
            gib(row["bytes"]),
            f"{row['times']:,}",
            _seconds(row["seconds"]),
            row["wires"],
            _seconds(row["exposed"]),
        )
    rest = rows[len(shown) :]
    if rest:
        table.add_row(
            f"{len(rest)} kinds more, each below {least:.1%}",
            "",
            "",
            "",
            "",
            f"{sum(r['times'] for r in rest):,}",
            _seconds(sum(r["seconds"] for r in rest)),
            "",
            _seconds(sum(r["exposed"] for r in rest)),
        )
    table.add_section()
    table.add_row(
        "together",
        "",
        "",
        "",
        "",
        f"{sum(r['times'] for r in rows):,}",
        _seconds(total),
        "",
        _seconds(sum(r["exposed"] for r in rows)),
    )
    return table
