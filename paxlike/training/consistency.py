"""Checks, before the first step, that all processes of a job have the same config, code and data.

Processes that differ compile different programs and deadlock in mismatched collectives.
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
    """Compares config, code, packages and data across processes.

    Raises UserError with the process and what differs. seconds: the timeout of the exchange.
    """
    same = {
        "code": source_hash(),
        "data": store.fingerprint,
        "Python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }
    found = job.exchange(
        "config, code and data", {"config": to_json(config), "same": same}, seconds
    )
    _check_no_differences(
        [
            _config_differences(found[0], other) + _differences(found[0]["same"], other["same"])
            for other in found
        ]
    )


def check_program(lowered: jax.stages.Lowered, seconds: float) -> None:
    """Compares the program that each process is about to compile.

    Raises UserError with the process that has a different program.
    """
    digest = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    found = job.exchange("the lowered train step", digest, seconds)
    _check_no_differences(
        [
            _differences({"lowered train step": found[0]}, {"lowered train step": other})
            for other in found
        ]
    )


def check_devices() -> None:
    """Runs a first collective over all devices. Raises RuntimeError if its result is wrong.

    The caller limits its time: it may never return.
    """
    found = multihost_utils.process_allgather(np.int32(jax.process_index()))
    if found.ravel().tolist() != list(range(jax.process_count())):
        raise RuntimeError(
            f"an all-gather of the process indices over all devices returned "
            f"{found.ravel().tolist()} instead of 0 to {jax.process_count() - 1}."
        )


def source_hash(package: Path = Path(paxlike.__file__).parent) -> str:
    """Returns the sha256 of the package's source files and their names."""
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
    # Hosts may have their copies of the data at different paths; the contents are compared above.
    return [change for change in changes if not change.startswith(("data.store:", "data.module:"))]


def _differences(first: dict[str, str], other: dict[str, str]) -> list[str]:
    return [
        f"{name}: {_short(first[name])} -> {_short(other[name])}"
        for name in first
        if first[name] != other[name]
    ]


def _short(value: str) -> str:
    return value[:12]


def _check_no_differences(differences_by_process: list[list[str]]) -> None:
    lines = [
        f"{job.process_name(k)}: {'; '.join(changes)}"
        for k, changes in enumerate(differences_by_process)
        if changes
    ]
    if lines:
        job.wait_for_readers()
        raise UserError(
            f"the processes of the job differ from {job.process_name(0)}. {'. '.join(lines)}. "
            "Give all hosts the same code, config and data."
        )
