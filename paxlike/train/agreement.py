"""What must be the same in every process of a job: found out before the first step, where it costs seconds and not a lost run.

Processes that differ in code or config compile different programs, and then wait for each other in collectives that never meet.
"""

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

import paxlike
from paxlike.config import Config, UserError, differences, from_json, to_json
from paxlike.data.source import Source
from paxlike.parallel import job

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def check_config(config: Config, store: Source, seconds: float) -> None:
    """Compares config, code, packages and data of all processes. Raises UserError naming the process and what differs."""
    same = {
        "code": source_hash(),
        "data": store.fingerprint,
        "Python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }
    found = job.exchange("config, code and data", {"config": to_json(config), "same": same}, seconds)
    _refuse([_config_differences(found[0], other) + _differences(found[0]["same"], other["same"]) for other in found])


def check_program(lowered: jax.stages.Lowered, seconds: float) -> None:
    """Compares the program that each process is about to compile. Raises UserError naming the process that has another."""
    digest = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    found = job.exchange("the lowered train step", digest, seconds)
    _refuse([_differences({"lowered train step": found[0]}, {"lowered train step": other}) for other in found])


def check_devices() -> None:
    """A first sum over all devices. Raises RuntimeError where it is wrong; where it does not end, the watchdog's limit is what ends it."""
    found = multihost_utils.process_allgather(np.int32(jax.process_index()))
    if found.ravel().tolist() != list(range(jax.process_count())):
        raise RuntimeError(f"gathering the processes' numbers over the devices gave {found.ravel().tolist()}.")


def source_hash(package: Path = Path(paxlike.__file__).parent) -> str:
    """sha256 of the package's source files and their names: two hosts with the same one run the same code."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(json.dumps([path.relative_to(package).as_posix(), path.read_text()]).encode())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _config_differences(first: dict, other: dict) -> list[str]:
    changes = differences(from_json(first["config"]), from_json(other["config"]))
    # Hosts may keep their copies of the data in different places; what is in them is compared by itself.
    return [change for change in changes if not change.startswith(("data.store:", "data.module:"))]


def _differences(first: dict[str, str], other: dict[str, str]) -> list[str]:
    return [f"{name}: {_short(first[name])} -> {_short(other[name])}" for name in first if first[name] != other[name]]


def _short(value: str) -> str:
    return value[:12]


def _refuse(differing: list[list[str]]) -> None:
    lines = [f"{job.called(k)}: {'; '.join(changes)}" for k, changes in enumerate(differing) if changes]
    if lines:
        job.linger()
        raise UserError(
            f"the processes of the job differ from {job.called(0)}. {'. '.join(lines)}. Give all hosts the same code, config and data."
        )
