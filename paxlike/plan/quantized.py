"""What quantization changes of what a step sends: the plan's program beside its twin without it."""

import dataclasses
from collections.abc import Callable

from paxlike.accounting.hlo_collectives import added
from paxlike.accounting.units import si
from paxlike.config import Config, QuantConfig
from paxlike.plan.cache import facts
from paxlike.plan.compile import lower
from paxlike.plan.topology import Cluster


def against_unquantized(told: dict, config: Config, made: Cluster, say: Callable[[str], None]) -> dict:
    """The plan, and of a quantized config what its layers send that those of its unquantized twin, compiled too, do not."""
    if not config.model.quant.active or told["refused"]:
        return told
    say("compiling its unquantized twin")
    twin = dataclasses.replace(config, model=dataclasses.replace(config.model, quant=QuantConfig()))
    (ours, _), (plain, _) = facts(lower(config, made)), facts(lower(twin, made))
    if plain.refused:
        return told
    ours, plain = ([c for c in found.all_collectives() if c.in_loop] for found in (ours, plain))
    rows = [{"kind": row.kind, "axis": row.axis, "bytes": row.payload} for row in added(ours, plain)]
    gathered = [sum(c.times * c.payload for c in found if c.kind == "all-gather") for found in (ours, plain)]
    return {**told, "quantization": {"added": rows, "all_gather_bytes": gathered[0], "unquantized": gathered[1]}}


def line(quantization: dict) -> str:
    """One sentence of it; bytes are of one device and one step."""
    more = ", ".join(f"{si(r['bytes'], 'B')} by {r['kind']} over {r['axis']}" for r in quantization["added"])
    ours, plain = (si(quantization[name], "B") for name in ("all_gather_bytes", "unquantized"))
    return (
        "Quantization: the layers send nothing that the unquantized ones do not"
        if not more
        else f"Quantization: the layers also send {more}"
    ) + f"; all-gathers {ours}, unquantized {plain}.\n"
