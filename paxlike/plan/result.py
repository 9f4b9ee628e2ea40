"""A plan: what a compiled program's facts mean for a run, as one nested dict of plain numbers (the JSON of `paxlike plan`)."""

import math
from collections.abc import Iterable

import numpy as np

from paxlike.accounting.flops import model_flops
from paxlike.accounting.hlo_collectives import Collective
from paxlike.accounting.parameters import stored_shapes
from paxlike.config import Config
from paxlike.parallel.axes import letters_of
from paxlike.parallel.rules import shards, weight_spec
from paxlike.plan import links, roofline
from paxlike.plan.cache import versions
from paxlike.plan.compile import Facts
from paxlike.plan.topology import Cluster

CROSSING_SLACK = 2**22
"""Bytes besides the gradients that may cross `pod` unmentioned: sums of losses, norms, counts."""


def plan_of(config: Config, cluster: Cluster, facts: Facts, devices: np.ndarray) -> dict:
    """devices: the mesh's array of devices."""
    tokens = config.train.batch_size * config.data.sequence_length
    palm = model_flops(config.model, config.data.sequence_length).total
    fits = facts.fits(cluster.usable)
    told = {
        "config": config.name,
        "cluster": {"name": cluster.name, "pods": cluster.pods, "chips": cluster.chips, "chip": cluster.chip and cluster.chip.title},
        "mesh": facts.mesh,
        "remat": config.model.remat,
        "batch": {
            "sequences": config.train.batch_size, "accumulate": config.train.accumulate,
            "sequence_length": config.data.sequence_length, "tokens": tokens, "tokens_per_chip": tokens / cluster.chips,
        },
        "fits": fits,
        "memory": {"parts": facts.memory, "needed": facts.needed, "usable": cluster.usable},
        "refused": facts.refused,
        "buffers": facts.buffers,
        "compile": {"seconds": facts.seconds, "process_bytes": facts.process_bytes, "versions": versions()},
    }  # fmt: skip
    if facts.refused:
        return told
    found = facts.all_collectives()
    seconds = _link_seconds(found, cluster, devices, facts.mesh)
    told["collectives"] = _rows(found, seconds)
    told["crossing_pod"] = crossing_pod(config, facts.mesh, found)
    told["flops"] = {
        "per_device": facts.flops, "per_token": facts.flops * devices.size / tokens, "palm_per_token": palm,
        "hardware_over_model": facts.flops * devices.size / tokens / palm, "uncounted": facts.uncounted,
    }  # fmt: skip
    if cluster.chip:
        told["predicted"] = _predicted(config, cluster, facts, seconds, told["flops"])
    return told


def _link_seconds(
    found: list[Collective], cluster: Cluster, devices: np.ndarray, mesh: dict[str, int]
) -> list[tuple[str, float]]:
    """(which wires, seconds of one run at best) of each collective."""
    if cluster.chip is None:
        return [("this machine", 0.0)] * len(found)
    made: dict[str, links.Link] = {}
    rows = []
    for collective in found:
        axis = collective.axis
        if axis not in made:
            axes = [name for name in mesh if name in axis.removeprefix("part of ").split("+")]
            made[axis] = links.link(cluster, devices, axes or list(mesh), list(mesh))
        rows.append((made[axis].what, links.seconds(collective, made[axis].bandwidth)))
    return rows


def _rows(found: list[Collective], seconds: list[tuple[str, float]]) -> list[dict]:
    """Collectives that are alike together, the longest first."""
    alike: dict[tuple, dict] = {}
    for c, (wires, each) in zip(found, seconds, strict=True):
        key = (c.kind, c.axis, c.in_loop, c.dtype, c.payload, c.alone)
        row = alike.setdefault(
            key,
            {
                "kind": c.kind, "axis": c.axis, "in_layer_loop": c.in_loop, "dtype": c.dtype, "bytes": c.payload, "times": 0,
                "sent_bytes": 0, "wires": wires, "seconds": 0.0, "waits": c.alone,
            },
        )  # fmt: skip
        row["times"] += c.times
        row["sent_bytes"] += c.times * c.sent_bytes
        row["seconds"] += c.times * each
    return sorted(alike.values(), key=lambda row: (-row["seconds"], -row["sent_bytes"]))


def gradient_bytes(config: Config, mesh: dict[str, int]) -> int:
    """Bytes of the gradient on one device, as it is summed over `pod`: cut as the parameters are, in the gradients' dtype."""
    total = 0
    for name, shape in stored_shapes(config.model):
        places = weight_spec("L" * name.startswith("blocks/") + letters_of(name), shape, mesh)
        total += math.prod(n // shards(place, mesh) for n, place in zip(shape, places, strict=True))
    return total * {"float32": 4, "bfloat16": 2}[config.precision.gradients]


def crossing_pod(config: Config, mesh: dict[str, int], found: Iterable[Collective]) -> dict:
    """What is sent between pods, against what the gradient has to send (the batch comes from the hosts and crosses nothing)."""
    crossing = [c for c in found if "pod" in c.axis]
    sent = sum(c.times * c.payload for c in crossing)
    wanted = gradient_bytes(config, mesh) if mesh["pod"] > 1 else 0
    others = sorted({f"{c.kind} over {c.axis}" for c in crossing if c.kind != "all-reduce"})
    if mesh["pod"] == 1:
        verdict = "one pod: nothing crosses."
    elif others:
        verdict = f"also {', '.join(others)} cross `pod`, which the layout does not ask for."
    elif sent > wanted * 1.02 + CROSSING_SLACK:
        verdict = (
            f"{sent - wanted:,} bytes more than the gradient cross `pod`: not all of them are asked for by the layout."
        )
    else:
        verdict = "only the gradient crosses `pod`, already scattered over `data` and `model`, and sums of a few bytes."
    return {"bytes": sent, "gradient_bytes": wanted, "verdict": verdict}


def _predicted(config: Config, cluster: Cluster, facts: Facts, seconds: list[tuple[str, float]], flops: dict) -> dict:
    dtype = "bfloat16" if config.precision.compute == "auto" else config.precision.compute
    runs = [c.times for c in facts.all_collectives()]
    collectives = [(n, each, window) for n, (_, each), window in zip(runs, seconds, facts.windows, strict=True)]
    times = roofline.times(facts.work, collectives, cluster.chip, dtype)
    tokens = config.train.batch_size * config.data.sequence_length
    rate = tokens / times.step
    peak = cluster.chips * cluster.chip.peak(dtype)
    budget = config.train.sequences_before(config.train.steps) * config.data.sequence_length
    return {
        "seconds": {
            "matrix": times.matrix, "memory": times.memory, "device": times.device, "links": times.links,
            "hidden": times.hidden, "step": times.step,
        },
        "tokens_per_second": rate,
        "mfu": rate * flops["palm_per_token"] / peak,
        "hfu": rate * flops["per_token"] / peak,
        "budget_tokens": budget,
        "days": budget / rate / 86_400,
        "chip_hours": budget / rate / 3600 * cluster.chips,
    }  # fmt: skip
