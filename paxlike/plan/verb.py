"""`paxlike plan`: compiles a config's train step for a cluster that is not here, and says what will be."""

import dataclasses
from collections.abc import Callable

import jax

from paxlike.config import Config, ConfigError, UserError
from paxlike.plan.cache import facts
from paxlike.plan.compile import lower
from paxlike.plan.result import plan_of
from paxlike.plan.topology import Cluster, cluster


def prepare(config: Config, topology: str, pods: int | None) -> tuple[Config, Cluster]:
    """The cluster, of as many pods as the mesh has. Raises UserError where the two disagree."""
    if pods is not None and config.mesh.pod not in (pods, -1):
        raise ConfigError(
            f"--pods is {pods}, but mesh.pod is {config.mesh.pod}: give --mesh.pod {pods}, or leave --pods out."
        )
    made = cluster(topology, pods or max(1, config.mesh.pod))
    try:
        sizes = config.mesh.resolve(made.device_count)
    except ConfigError as error:
        raise ConfigError(f"{topology}, {made.pods} pods: {str(error).split(', or --fake-devices')[0]}.") from None
    if made.pods > 1 and sizes[0] != made.pods:
        raise ConfigError(f"mesh.pod is {sizes[0]}, but there are {made.pods} pods: give --mesh.pod {made.pods}.")
    return config, made


def plan(config: Config, made: Cluster, say: Callable[[str], None] = lambda text: None) -> dict:
    """The plan of one config. say: is told what is about to take long."""
    # What is compiled for absent machines cannot be read back from JAX's own cache.
    jax.config.update("jax_enable_compilation_cache", False)
    lowered = lower(config, made)
    say(
        f"compiling {config.name} for {made.pods} x {made.name}, remat {config.model.remat}, batch {config.train.batch_size}"
    )
    found, cached = facts(lowered)
    told = plan_of(config, made, found, lowered.mesh.devices)
    told["compile"]["cached"] = cached
    return told


# ---- what would help -------------------------------------------------------------------------------------------------

_NEXT_REMAT = {"none": "attention", "attention": "dots", "dots": "full"}


def changes(config: Config) -> list[tuple[str, Config]]:
    """(what is changed, the config) of each way to need less memory: the next remat policies, twice the model axis, half of the batch at a
    time."""
    tried = []
    policy = config.model.remat
    while policy := _NEXT_REMAT.get(policy):
        tried.append((f"model.remat {policy}", _with(config, "model", remat=policy)))
    if config.mesh.data == -1:
        wider = 2 * config.mesh.model
        tried.append((f"mesh.model {wider}", _with(config, "mesh", model=wider)))
    halves = 2 * config.train.accumulate
    if config.train.batch_size % halves == 0:
        tried.append((f"train.accumulate {halves}", _with(config, "train", accumulate=halves)))
        half = config.train.batch_size // 2
        tried.append((f"train.batch_size {half}", _with(config, "train", batch_size=half, batch_ramp=())))
    return tried


def with_remedies(told: dict, config: Config, made: Cluster, say: Callable[[str], None]) -> dict:
    """The plan, and where it does not fit what would help: each change compiled."""
    if told["fits"] is not False:
        return told
    rows = []
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
    return {**told, "remedies": rows}


def _with(config: Config, section: str, **fields) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **fields)})
