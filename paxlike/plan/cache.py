"""Facts on disk: a program that was compiled once for a cluster is not compiled again. What a compiler makes for a machine that is
not here cannot be read back as a program, so its facts are kept.

They are filed under a hash of the lowered program (not of the config: two configs that make one program share a file), the cluster, the
mesh's devices, and the versions of whatever compiled and read them.
"""

import dataclasses
import hashlib
import importlib.metadata
import json

from paxlike.files import write_file
from paxlike.parallel.cache import cache_root
from paxlike.plan.compile import Facts, Lowered, compile_facts

FORMAT = 3
"""Counted up when the reading of a program changes."""


def facts(lowered: Lowered) -> tuple[Facts, bool]:
    """(facts, whether they came from disk). Compiles where there are none; a file that cannot be read is written anew."""
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
        str(FORMAT), cluster.name, str(cluster.pods), ",".join(str(d.id) for d in lowered.mesh.devices.flat),
        lowered.numerics.attention, *versions(), lowered.stage.as_text(),
    )  # fmt: skip
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def versions() -> list[str]:
    """`name version` of all that takes part in compiling."""
    found = []
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
