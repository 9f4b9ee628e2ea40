"""Compares the communication of a quantized step with that of the unquantized step."""

import dataclasses
from collections.abc import Callable

from paxlike.accounting.hlo_collectives import added
from paxlike.accounting.units import si
from paxlike.config import Config, QuantConfig
from paxlike.planning.cache import facts
from paxlike.planning.compile import lower
from paxlike.planning.topology import Cluster


def against_unquantized(
    result: dict, config: Config, made: Cluster, say: Callable[[str], None]
) -> dict:
    """Adds to the plan of a quantized config what its layers send in addition to the unquantized
    model, which is compiled too.
    """
    if not config.model.quant.active or result["refused"]:
        return result
    say("compiling the unquantized model")
    twin = dataclasses.replace(config, model=dataclasses.replace(config.model, quant=QuantConfig()))
    # Quantized projections norm the whole stream, so they gather it whole.
    (ours_facts, _), (plain_facts, _) = (
        facts(lower(config, made)),
        facts(lower(twin, made, whole=True)),
    )
    if plain_facts.refused:
        return result
    ours, plain = (
        [c for c in found.all_collectives() if c.in_loop] for found in (ours_facts, plain_facts)
    )
    rows = [
        {"kind": row.kind, "axis": row.axis, "bytes": row.payload} for row in added(ours, plain)
    ]
    gathered = [
        sum(c.times * c.payload for c in found if c.kind == "all-gather") for found in (ours, plain)
    ]
    return {
        **result,
        "quantization": {
            "added": rows,
            "all_gather_bytes": gathered[0],
            "unquantized": gathered[1],
        },
    }


def line(quantization: dict) -> str:
    """A sentence about it; bytes are for one device and step."""
    more = ", ".join(
        f"{si(r['bytes'], 'B')} by {r['kind']} over {r['axis']}" for r in quantization["added"]
    )
    ours, plain = (si(quantization[name], "B") for name in ("all_gather_bytes", "unquantized"))
    return (
        "Quantization: the layers send nothing in addition to the unquantized model"
        if not more
        else f"Quantization: the layers also send {more}"
    ) + f"; all-gathers {ours}, unquantized {plain}.\n"
