"""A plan: the facts of a compiled program and their consequences for a run, as one nested dict (the
JSON of `paxlike plan`).
"""

import math
from collections.abc import Iterable
from typing import Any

from paxlike.accounting.adapted_flops import training_flops
from paxlike.accounting.adapted_parameters import trained_shapes
from paxlike.accounting.hlo_collectives import Collective
from paxlike.config import Config
from paxlike.parallel.axes import stored_letters
from paxlike.parallel.rules import shards, weight_spec
from paxlike.planning.cache import versions
from paxlike.planning.communication import by_axis, most_exposed, rows
from paxlike.planning.compile import Facts
from paxlike.planning.simulated_step import Step
from paxlike.planning.topology import Cluster

CROSSING_SLACK = 2**22
"""Bytes beyond the gradients that may cross `pod` without a note: sums of losses and norms."""


def plan_of(config: Config, cluster: Cluster, facts: Facts, step: Step) -> dict:
    """Returns the plan."""
    tokens = config.train.batch_size * config.data.sequence_length
    devices = cluster.device_count
    palm = training_flops(config)
    fits = facts.fits(cluster.usable)
    result: dict[str, Any] = {
        "config": config.name,
        "cluster": {
            "name": cluster.name,
            "pods": cluster.pods,
            "chips": cluster.chips,
            "chip": cluster.chip and cluster.chip.title,
        },
        "mesh": facts.mesh,
        "remat": config.model.remat,
        "batch": {
            "sequences": config.train.batch_size,
            "accumulate": config.train.accumulate,
            "sequence_length": config.data.sequence_length,
            "tokens": tokens,
            "tokens_per_chip": tokens / cluster.chips,
        },
        "fits": fits,
        "memory": {"parts": facts.memory, "needed": facts.needed, "usable": cluster.usable},
        "refused": facts.refused,
        "buffers": facts.buffers,
        "compile": {
            "seconds": facts.seconds,
            "process_bytes": facts.process_bytes,
            "versions": versions(),
        },
    }
    if facts.refused:
        return result
    found = facts.all_collectives()
    result["collectives"] = rows(found, step)
    result["crossing_pod"] = crossing_pod(config, facts.mesh, found)
    result["flops"] = {
        "per_device": facts.flops,
        "per_token": facts.flops * devices / tokens,
        "palm_per_token": palm.total,
        "convention": f"{palm.name}: {palm.formula}",
        "hardware_over_model": facts.flops * devices / tokens / palm.total,
        "uncounted": facts.uncounted,
    }
    if cluster.chip:
        result["communication"] = by_axis(found, step)
        result["most_exposed"] = most_exposed(facts, step)
        result["predicted"] = _predicted(config, cluster, step, result["flops"])
    return result


def gradient_bytes(config: Config, mesh: dict[str, int]) -> int:
    """Bytes of the gradient on one device when it is summed over `pod`: sharded like the
    parameters, in the gradients' dtype.
    """
    total = 0
    for name, shape in trained_shapes(config.model, config.adapt):
        places = weight_spec(stored_letters(name), shape, mesh)
        total += math.prod(n // shards(place, mesh) for n, place in zip(shape, places, strict=True))
    return total * {"float32": 4, "bfloat16": 2}[config.precision.gradients]


def crossing_pod(config: Config, mesh: dict[str, int], found: Iterable[Collective]) -> dict:
    """Compares the bytes sent between pods with the bytes of the gradient. (The batch is read by
    each host and is not sent.)
    """
    crossing = [c for c in found if "pod" in c.axis]
    sent = sum(c.times * c.payload for c in crossing)
    wanted = gradient_bytes(config, mesh) if mesh["pod"] > 1 else 0
    others = sorted({f"{c.kind} over {c.axis}" for c in crossing if c.kind != "all-reduce"})
    if mesh["pod"] == 1:
        verdict = "one pod: nothing crosses."
    elif others:
        verdict = f"also {', '.join(others)} cross `pod`, which the sharding does not require."
    elif sent > wanted * 1.02 + CROSSING_SLACK:
        verdict = (
            f"{sent - wanted:,} bytes more than the gradient cross `pod`: the sharding does not "
            "require all of them."
        )
    else:
        verdict = (
            "only the gradient crosses `pod`, already scattered over `data` and `model`, and sums "
            "of a few bytes."
        )
    return {"bytes": sent, "gradient_bytes": wanted, "verdict": verdict}


def _predicted(config: Config, cluster: Cluster, step: Step, flops: dict) -> dict:
    chip, timeline = cluster.accelerator, step.timeline
    tokens = config.train.batch_size * config.data.sequence_length
    rate = tokens / timeline.step
    dtype = "bfloat16" if config.precision.compute == "auto" else config.precision.compute
    peak = cluster.chips * chip.peak(dtype)
    budget = config.train.sequences_before(config.train.steps) * config.data.sequence_length
    return {
        "seconds": {
            "matrix": step.matrix,
            "memory": step.memory,
            "device": timeline.device,
            "links": timeline.links,
            "hidden": timeline.links - timeline.exposed,
            "exposed": timeline.exposed,
            "step": timeline.step,
        },
        "tokens_per_second": rate,
        "mfu": rate * flops["palm_per_token"] / peak,
        "hfu": rate * flops["per_token"] / peak,
        "budget_tokens": budget,
        "days": budget / rate / 86_400,
        "chip_hours": budget / rate / 3600 * cluster.chips,
    }
