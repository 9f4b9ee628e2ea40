"""`paxlike.plan` and `paxlike.flops`: what a config needs, computed without the machine."""

import dataclasses
from pathlib import Path
from typing import Any

from paxlike.accounting.executed_flops import flops_by_part
from paxlike.accounting.flops import Count, forward_flops, hardware_flops, model_flops
from paxlike.accounting.parameters import parameter_count
from paxlike.config import Config, load


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs per token of a config. Each `Count` has `.total`, `.formula` and named `.terms`."""

    palm: Count
    """Training, by the convention of PaLM (arXiv 2204.02311, appendix B)."""
    palm_no_embedding: Count
    causal: Count
    """Training, with half of attention's products."""
    hardware: Count
    """Training, with what rematerialization recomputes."""
    forward: Count
    """The forward pass, product by product."""
    by_part: dict[str, int]
    """Training as executed, by part of the model."""
    parameters: int


def flops(config: Config | str | Path) -> Flops:
    """FLOPs per token under each published convention. Imports no JAX; takes no time."""
    config = config if isinstance(config, Config) else load(config)
    model, T = config.model, config.data.sequence_length
    return Flops(
        palm=model_flops(model, T, "palm"),
        palm_no_embedding=model_flops(model, T, "palm_no_embedding"),
        causal=model_flops(model, T, "causal"),
        hardware=hardware_flops(model, T),
        forward=forward_flops(model, T),
        by_part=flops_by_part(model, T),
        parameters=parameter_count(model),
    )


def plan(config: Config | str | Path, topology: str, pods: int | None = None) -> dict[str, Any]:
    """Compiles the train step ahead of time for a cluster that you don't have.

    topology: `v4:12x16x16` (TPU chips along each axis), `h100:4x8` (hosts x GPUs per host) or
    `cpu:8`. pods: how many of them, joined by the data-center network. Returns what `paxlike plan
    --json` prints: memory by part, collectives, FLOPs and the predicted step. Raises UserError if
    the config does not fit the topology or the compiler is not installed.
    """
    from paxlike.planning.command import compile_plan

    config = config if isinstance(config, Config) else load(config)
    return compile_plan(config, topology, pods)
