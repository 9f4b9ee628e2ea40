"""Machines that are not here: the devices of a named cluster, for meshes and ahead-of-time compilation.

    cluster("v4:12x16x16", pods=2)     two slices of TPU v4, joined by the data-center network
    cluster("h100:4x8")                4 hosts of 8 GPUs
    cluster("cpu:8")                   8 CPU devices made of this machine's own

A program can be traced, lowered and compiled for them, not run.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from paxlike.accounting.hardware import CHIPS, Chip, chip_named
from paxlike.accounting.units import GiB
from paxlike.config import UserError
from paxlike.parallel.compilers import silent
from paxlike.plan.gpu import GPUS, target_config

TPU_USABLE = {
    "v2": 7.48, "v3": 15.48, "v4": 30.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25, "v7x": 94.75,
}  # fmt: skip
"""GiB that a program may take on one device, as the TPU compiler (libtpu 0.0.42) says when it refuses one that is larger."""

GPU_USABLE = 0.92
"""Share of a GPU's memory that a program may take: what `parallel/runtime.py` asks JAX to take. The CUDA context, NCCL's buffers and the
libraries' workspaces lie in the rest."""


class MissingCompiler(UserError):
    """The compiler for these devices is not installed."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    name: str
    pods: int
    shape: tuple[int, ...]
    """Of one pod: TPU chips along each axis of the torus, or (hosts, GPUs of a host)."""
    platform: str
    """tpu, gpu or cpu."""
    chip: Chip | None
    """The hardware table's row; None for CPUs."""
    usable: int | None
    """Bytes that a program may take on one device; None where nothing is known (CPU)."""

    @property
    def device_count(self) -> int:
        return self.pods * math.prod(self.shape) * (self.chip.devices_per_chip if self.chip else 1)

    @property
    def chips(self) -> int:
        return self.pods * math.prod(self.shape)

    def devices(self) -> list[jax.Device]:
        """Raises MissingCompiler where the compiler for them is not installed, UserError where it does not know the topology."""
        if self.platform == "tpu":
            return tpu_devices(self.name, self.pods)
        if self.platform == "gpu":
            return _gpu_devices(self)
        return jax.devices("cpu")


def cluster(name: str, pods: int = 1) -> Cluster:
    """The cluster of a topology's name. Raises UserError where the name is of no known form or chip."""
    chip_name, colon, sizes = name.partition(":")
    if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", sizes):
        raise UserError(
            f"the topology {name!r} is not of the form v4:4x4x4 (TPU chips along each axis), h100:4x8 (hosts x GPUs of a host) or cpu:8."
        )
    if pods < 1:
        raise UserError(f"--pods is {pods}; it must be 1 or more.")
    shape = tuple(int(size) for size in sizes.split("x"))
    if chip_name == "cpu":
        return Cluster(name, pods, shape, "cpu", None, None)
    if chip_name in TPU_USABLE:
        return Cluster(name, pods, shape, "tpu", chip_named(chip_name), int(TPU_USABLE[chip_name] * GiB))
    if chip_name in GPUS:
        if len(shape) != 2:
            raise UserError(
                f"the topology {name!r} needs two sizes, hosts x GPUs of a host, such as {chip_name}:{shape[0]}x8."
            )
        chip = chip_named(chip_name)
        return Cluster(name, pods, shape, "gpu", chip, int(GPU_USABLE * GPUS[chip_name].memory))
    known = [chip.name for chip in CHIPS if chip.name in TPU_USABLE or chip.name in GPUS]
    raise UserError(f"the topology {name!r} is of the chip {chip_name!r}; known are {', '.join(known)} and cpu.")


def tpu_devices(name: str, slices: int = 1) -> list[jax.Device]:
    """Devices of `slices` slices of a topology such as `v4:4x4x4`, `v5p:8x8x8` or `v6e:16x16`.

    Raises UserError where the name is not of that form or not known to the TPU compiler, MissingCompiler where libtpu is not installed.
    """
    if not re.fullmatch(r"v\d+\w*:\d+(x\d+){1,2}", name):
        raise UserError(f"the topology {name!r} is not of the form v4:4x4x4 (chip:chips along each axis).")
    if importlib.util.find_spec("libtpu") is None:
        raise MissingCompiler(
            f"the topology {name!r} needs the TPU compiler, which is not installed: pip install 'paxlike[plan-tpu]'."
        )
    # No TPU is here: the compiler must neither look for one nor for its neighbors, nor take the lock of one.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
    # A v4 chip is one device when its two cores are joined.
    joined = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    several = {"num_slices": slices} if slices > 1 else {}
    asked = name.replace("v7x:", "tpu7x:")
    try:
        with silent():
            return list(topologies.get_topology_desc(platform="tpu", topology_name=asked, **joined, **several).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(f"the TPU compiler does not know {slices} x {name}: {str(error).splitlines()[0]}") from error


def _gpu_devices(cluster: Cluster) -> list[jax.Device]:
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise MissingCompiler(
            f"the topology {cluster.name!r} needs JAX's CUDA plugin, which is not installed: pip install 'paxlike[plan-gpu]'."
        )
    hosts, gpus = cluster.shape
    target = target_config(cluster.name.partition(":")[0])
    shape = f"{cluster.pods}x{hosts}x{gpus}"
    try:
        with silent():
            return list(
                topologies.get_topology_desc(cluster.name, "cuda", target_config=target, topology=shape).devices
            )
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"the CUDA plugin does not know {cluster.pods} x {cluster.name}: {str(error).splitlines()[0]}"
        ) from error
