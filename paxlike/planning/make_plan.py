"""Compiles a config's train step ahead of time for a cluster, and lists changes that make it
fit.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax

from paxlike.config import Config, ConfigError, UserError
from paxlike.planning.cache import facts
from paxlike.planning.compile import Facts, lower
from paxlike.planning.result import plan_of
from paxlike.planning.simulated_step import Step, simulated
from paxlike.planning.topology import Cluster, cluster


def prepare(config: Config, topology: str, pods: int | None) -> tuple[Config, Cluster]:
    """The config and its cluster. Raises UserError if the mesh and the cluster do not match."""
    if pods is not None and config.mesh.pod not in (pods, -1):
        raise ConfigError(
            f"--pods is {pods}, but mesh.pod is {config.mesh.pod}; set --mesh.pod {pods}, or "
            "omit --pods."
        )
    made = cluster(topology, pods or max(1, config.mesh.pod))
    try:
        sizes = config.mesh.resolve(made.device_count)
    except ConfigError as error:
        raise ConfigError(
            f"{topology}, {made.pods} pods: {str(error).split(', or --fake-devices')[0]}."
        ) from None
    if made.pods > 1 and sizes["pod"] != made.pods:
        raise ConfigError(
            f"mesh.pod is {sizes['pod']}, but there are {made.pods} pods; set --mesh.pod "
            f"{made.pods}."
        )
    return config, made


NO_OPTIONS: Mapping[str, bool | str] = MappingProxyType({})


def plan(
    config: Config,
    made: Cluster,
    say: Callable[[str], None] = lambda text: None,
    options: Mapping[str, bool | str] = NO_OPTIONS,
) -> dict:
    """The plan of one config, as `paxlike plan --json` prints it.

    say: called before long work. options: of the compiler, with other values than the table's.
    """
    return plan_and_step(config, made, say, options)[0]


def plan_and_step(
    config: Config,
    made: Cluster,
    say: Callable[[str], None],
    options: Mapping[str, bool | str] = NO_OPTIONS,
) -> tuple[dict, Facts, Step]:
    """The plan of one config, the facts of its program, and the simulated step."""
    # JAX's own cache cannot load programs for absent machines.
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        lowered = dataclasses.replace(lower(config, made), options=options)
        say(
            f"compiling {config.name} for {made.pods} x {made.name}, remat {config.model.remat}, "
            f"batch {config.train.batch_size}"
        )
        found, cached = facts(lowered)
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
    step = simulated(config, made, found, lowered.mesh.devices)
    result = plan_of(config, made, found, step)
    result["compile"]["cached"] = cached
    return result, found, step


# Changes that reduce memory

_LESS_MEMORY = ("none", "attention", "dots", "full")


def changes(config: Config) -> list[tuple[str, Config]]:
    """(description, changed config) of each way to need less memory: the next remat policies, twice
    the model axis, half the batch at a time.
    """
    tried = []
    remat = config.model.remat
    following = _LESS_MEMORY.index(remat) + 1 if remat in _LESS_MEMORY else len(_LESS_MEMORY)
    for policy in _LESS_MEMORY[following:]:
        tried.append((f"model.remat {policy}", _with(config, "model", remat=policy)))
    if config.mesh.data == -1:
        wider = 2 * config.mesh.model
        tried.append((f"mesh.model {wider}", _with(config, "mesh", model=wider)))
    halves = 2 * config.train.accumulate
    if config.train.batch_size % halves == 0:
        tried.append((f"train.accumulate {halves}", _with(config, "train", accumulate=halves)))
        half = config.train.batch_size // 2
        tried.append(
            (f"train.batch_size {half}", _with(config, "train", batch_size=half, batch_ramp=()))
        )
    return tried


def with_remedies(result: dict, config: Config, made: Cluster, say: Callable[[str], None]) -> dict:
    """Adds to a plan that does not fit the result of compiling each change."""
    if result["fits"] is not False:
        return result
    rows: list[dict[str, Any]] = []
    for change, changed in changes(config):
        try:
            other = plan(changed, made, say)
        except UserError as error:
            rows.append({"change": change, "error": str(error)})
            continue
        rows.append(
            {
                "change": change,
                "needed": other["memory"]["needed"],
                "fits": other["fits"],
                "predicted": other.get("predicted"),
            }
        )
    return {**result, "remedies": rows}


def _with(config: Config, section: str, **fields) -> Config:
    return dataclasses.replace(
        config, **{section: dataclasses.replace(getattr(config, section), **fields)}
    )
