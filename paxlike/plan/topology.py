"""The devices of a named TPU topology, without the TPU: what `parallel.mesh.make_mesh` needs to lay a mesh on it.

A program can be traced, lowered and compiled for them, not run.
"""

import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from paxlike.config import UserError


def tpu_devices(name: str, slices: int = 1) -> list[jax.Device]:
    """Devices of `slices` slices of a topology such as `v4:4x4x4`, `v5p:8x8x8` or `v6e:16x16`.

    Raises UserError where the name is not of that form or not known to the TPU compiler, or where libtpu is not installed.
    """
    if not re.fullmatch(r"v\d+\w*:\d+(x\d+){1,2}", name):
        raise UserError(f"the topology {name!r} is not of the form v4:4x4x4 (chip:chips along each axis).")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"the topology {name!r} needs the TPU compiler, which is not installed: pip install 'paxlike[tpu]'."
        )
    # No TPU is here: the compiler must neither look for one nor take the lock of one.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # A v4 chip is one device when its two cores are joined.
    joined = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    several = {"num_slices": slices} if slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **joined, **several).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(f"the TPU compiler does not know {slices} x {name}: {str(error).splitlines()[0]}") from error
