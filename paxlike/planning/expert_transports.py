"""Both transports of tokens to experts (`nn/expert_transport.py`), compiled and side by side."""

import dataclasses
from collections.abc import Callable
from typing import get_args, get_type_hints

from rich.table import Table

from paxlike.accounting.units import gib, si
from paxlike.config import Config, MeshConfig, UserError
from paxlike.planning.communication_tables import new_table
from paxlike.planning.make_plan import plan
from paxlike.planning.topology import Cluster

TRANSPORTS = get_args(get_type_hints(MeshConfig)["expert_transport"])


def with_transports(
    result: dict, config: Config, made: Cluster, say: Callable[[str], None]
) -> dict:
    """Adds a row for each transport to the plan of a config with expert parallelism: its own,
    and that of the same config with the other one, which is compiled too.
    """
    if config.mesh.expert == 1:
        return result
    rows = []
    for name in TRANSPORTS:
        if name == config.mesh.expert_transport:
            rows.append(_row(name, result))
            continue
        mesh = dataclasses.replace(config.mesh, expert_transport=name)
        try:
            rows.append(_row(name, plan(dataclasses.replace(config, mesh=mesh), made, say)))
        except UserError as error:
            rows.append({"transport": name, "error": str(error)})
    return {**result, "transports": rows}


def _row(name: str, result: dict) -> dict:
    row = {"transport": name, "fits": result["fits"], "needed": result["memory"]["needed"]}
    if result["refused"]:
        return {**row, "error": result["refused"]}
    over = [c for c in result["collectives"] if c["axis"] == "expert"]
    row["sent_bytes"] = sum(c["sent_bytes"] for c in over)
    row["seconds"] = sum(c["seconds"] for c in over)
    row["exposed"] = sum(c["exposed"] for c in over)
    if "predicted" in result:
        predicted = result["predicted"]
        row |= {"step": predicted["seconds"]["step"], "mfu": predicted["mfu"]}
    return row


def transports_table(rows: list[dict]) -> Table:
    table = new_table(
        "Transports of tokens to experts: collectives over `expert`, and the whole step",
        "mesh.expert_transport", ">bytes sent", ">seconds", ">exposed", ">step", ">MFU", ">memory",
        "fits", "",
    )  # fmt: skip
    for row in rows:
        cells = [""] * 5
        if "sent_bytes" in row:
            cells = [gib(row["sent_bytes"]), *(_seconds(row[n]) for n in ("seconds", "exposed"))]
            cells += [_seconds(row["step"]), f"{row['mfu']:.1%}"] if "step" in row else ["", ""]
        fits = {True: "yes", False: "no", None: ""}[row.get("fits")]
        needed = gib(row["needed"]) if row.get("needed") else ""
        table.add_row(row["transport"], *cells, needed, fits, row.get("error", "")[:60])
    return table


def _seconds(value: float) -> str:
    return si(value, "s", 3) if value else "0 s"
