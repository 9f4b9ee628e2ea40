"""The devices of a named cluster that need not be present, for ahead-of-time compilation.

    cluster("v4:12x16x16", pods=2)     two slices of TPU v4, joined by the data-center network
    cluster("h100:4x8")                4 hosts with 8 GPUs each
    cluster("cpu:8")                   8 simulated CPU devices

Programs can be traced, lowered and compiled for them, but not run.
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
from paxlike.planning.gpu import GPUS, target_config

TPU_USABLE = {
    "v2": 7.48, "v3": 15.48, "v4": 30.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25, "v7x": 94.75,
}  # fmt: skip
"""GiB usable by a program on one device, as the TPU compiler (libtpu 0.0.42) reports them when it
rejects a larger program.
"""

GPU_USABLE = 0.92
"""Fraction of a GPU's memory usable by a program: the fraction that `parallel/runtime.py` sets. The
rest holds the CUDA context, NCCL buffers and library workspaces.
"""


class MissingCompiler(UserError):
    """The compiler for these devices is not installed."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    name: str
    pods: int
    shape: tuple[int, ...]
    """Of one pod: TPU chips along each axis of the torus, or (hosts, GPUs per host)."""
    platform: str
    """tpu, gpu or cpu."""
    chip: Chip | None
    """The hardware table's row; None for CPUs."""
    usable: int | None
    """Bytes usable by a program on one device; None if unknown (CPU)."""

    @property
    def device_count(self) -> int:
        return self.pods * math.prod(self.shape) * (self.chip.devices_per_chip if self.chip else 1)

    @property
    def chips(self) -> int:
        return self.pods * math.prod(self.shape)

    @property
    def accelerator(self) -> Chip:
        """The hardware table's row of a TPU or GPU. Raises UserError for CPUs, which have none."""
        if self.chip is None:
            raise UserError(f"{self.name} has no row in the hardware table.")
        return self.chip

    def devices(self) -> list[jax.Device]:
        """The devices of all pods. Raises MissingCompiler if their compiler is not installed, and
        UserError if it does not support the topology.
        """
        if self.platform == "tpu":
            return tpu_devices(self.name, self.pods)
        if self.platform == "gpu":
            return _gpu_devices(self)
        return jax.devices("cpu")[: self.device_count]


def cluster(name: str, pods: int = 1) -> Cluster:
    """The cluster with this topology name. Raises UserError for an unknown form or chip."""
    chip_name, colon, sizes = name.partition(":")
    if not colon or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", sizes):
        raise UserError(
            f"the topology {name!r} is not of the form v4:4x4x4 (TPU chips along each axis), "
            "h100:4x8 (hosts x GPUs per host) or cpu:8."
        )
    if pods < 1:
        raise UserError(f"--pods is {pods}; it must be 1 or more.")
    shape = tuple(int(size) for size in sizes.split("x"))
    if chip_name == "cpu":
        return Cluster(name, pods, shape, "cpu", None, None)
    if chip_name in TPU_USABLE:
        return Cluster(
            name, pods, shape, "tpu", chip_named(chip_name), int(TPU_USABLE[chip_name] * GiB)
        )
    if chip_name in GPUS:
        if len(shape) != 2:
            raise UserError(
                f"the topology {name!r} needs two sizes, hosts x GPUs per host, such as "
                f"{chip_name}:{shape[0]}x8."
            )
        chip = chip_named(chip_name)
        return Cluster(name, pods, shape, "gpu", chip, int(GPU_USABLE * GPUS[chip_name].memory))
    known = [chip.name for chip in CHIPS if chip.name in TPU_USABLE or chip.name in GPUS]
    raise UserError(
        f"the topology {name!r} has the unknown chip {chip_name!r}; known chips are "
        f"{', '.join(known)} and cpu."
    )


def tpu_devices(name: str, slices: int = 1) -> list[jax.Device]:
    """Devices of `slices` slices of a topology such as `v4:4x4x4`, `v5p:8x8x8` or `v6e:16x16`.

    Raises UserError if the TPU compiler does not support it, and MissingCompiler if libtpu is not
    installed.
    """
    if not re.fullmatch(r"v\d+\w*:\d+(x\d+){1,2}", name):
        raise UserError(
            f"the topology {name!r} is not of the form v4:4x4x4 (chip:chips along each axis)."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise MissingCompiler(
            f"the topology {name!r} requires the TPU compiler, which is not installed: pip install "
            "'paxlike[plan-tpu]'."
        )
    # Without a TPU, the compiler must not look for one or its neighbors, or take its lock.
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
            return list(
                topologies.get_topology_desc(
                    platform="tpu", topology_name=asked, **joined, **several
                ).devices
            )
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"the TPU compiler does not know {slices} x {name}: {str(error).splitlines()[0]}"
        ) from error


def _gpu_devices(cluster: Cluster) -> list[jax.Device]:
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise MissingCompiler(
            f"the topology {cluster.name!r} requires JAX's CUDA plugin, which is not installed: "
            "pip "
            "install 'paxlike[plan-gpu]'."
        )
    hosts, gpus = cluster.shape
    target = target_config(cluster.name.partition(":")[0])
    shape = f"{cluster.pods}x{hosts}x{gpus}"
    try:
        with silent():
            return list(
                topologies.get_topology_desc(
                    cluster.name, "cuda", target_config=target, topology=shape
                ).devices
            )
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"the CUDA plugin does not know {cluster.pods} x {cluster.name}: "
            f"{str(error).splitlines()[0]}"
        ) from error
