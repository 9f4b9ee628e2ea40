"""Caches facts on disk, so that a program is compiled only once for a cluster.

A program compiled for an absent machine cannot be loaded again, so the cache stores its facts. The
key is a hash of the lowered program (not of the config: configs with the same program share a
file), the cluster, the mesh's devices, and the versions of the compilers and libraries.
"""

import dataclasses
import hashlib
import importlib.metadata
import json

from paxlike.files import write_file
from paxlike.parallel.cache_dir import cache_root
from paxlike.planning.compile import Facts, Lowered, compile_facts
from paxlike.training.compiler_options import compiler_options, user_flags

FORMAT = 6
"""Incremented when the analysis of programs changes."""


def facts(lowered: Lowered) -> tuple[Facts, bool]:
    """(facts, whether they came from disk). Compiles if no readable file exists."""
    path = cache_root() / "plans" / f"{_key(lowered)}.json"
    try:
        return Facts(**json.loads(path.read_text())), True
    except (OSError, ValueError, TypeError):
        pass
    made = compile_facts(lowered)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(dataclasses.asdict(made)))
    return made, False


def _key(lowered: Lowered) -> str:
    cluster = lowered.cluster
    parts = (
        str(FORMAT),
        cluster.name,
        str(cluster.pods),
        ",".join(str(d.id) for d in lowered.mesh.devices.flat),
        lowered.numerics.attention,
        _options(lowered),
        *versions(),
        lowered.stage.as_text(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _options(lowered: Lowered) -> str:
    """The compiler's options. For CPUs, paxlike sets the flags itself."""
    flags = {} if lowered.cluster.platform == "cpu" else user_flags()
    options = compiler_options(lowered.device_kind) | flags | dict(lowered.options)
    return str(sorted(options.items()))


def versions() -> list[str]:
    """`name version` of every library that takes part in compiling."""
    found = []
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
