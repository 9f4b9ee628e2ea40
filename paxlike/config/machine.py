"""How a run uses its machine: mesh, number formats, processes."""

import dataclasses
import math
from typing import Literal

from paxlike.config.check import divisors, require, typed


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 (one axis only) takes the devices that are left."""

    pod: int = 1
    """Groups of devices joined by a data-center network. Only the batch and the gradient reduction cross it."""
    data: int = -1
    model: int = 1

    def __post_init__(self):
        typed(self, "mesh")
        for field in ("pod", "data", "model"):
            value = getattr(self, field)
            require(
                value == -1 or value > 0,
                f"mesh.{field} is {value}; give a size above 0, or -1 for the devices that are left.",
            )
        require(
            [self.pod, self.data, self.model].count(-1) <= 1,
            f"mesh {self.pod} x {self.data} x {self.model} has -1 more than once; only one axis can take what is left.",
        )

    def resolve(self, devices: int) -> tuple[int, int, int]:
        """(pod, data, model) for a number of devices. Raises ConfigError where they do not fit."""
        sizes = [self.pod, self.data, self.model]
        known = math.prod(size for size in sizes if size != -1)
        if -1 in sizes:
            sizes[sizes.index(-1)] = devices // known
        require(
            math.prod(sizes) == devices,
            f"mesh pod {self.pod} x data {self.data} x model {self.model} does not fit {devices} devices; "
            f"choose mesh.model among {divisors(devices)}, or --fake-devices N to try another count on the CPU.",
        )
        return sizes[0], sizes[1], sizes[2]


DType = Literal["bfloat16", "float32"]


@dataclasses.dataclass(frozen=True)
class PrecisionConfig:
    """Number formats."""

    compute: Literal["auto", "bfloat16", "float32"] = "auto"
    """Matmuls and activations. auto: bfloat16 where it is the faster one: on accelerators, and on CPUs with instructions for it (AMX,
    AVX512-BF16) from JAX 0.12 on; float32 on others."""
    params: DType = "float32"
    """Stored parameters. The optimizer's moments are float32 always."""
    gradients: DType = "float32"
    """In which gradients are summed over data and pod."""

    def __post_init__(self):
        typed(self, "precision")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes that work together. No part of a run's config: a run goes on with any number of them."""

    coordinator: str = ""
    """HOST:PORT where process 0 listens, and nowhere else. Empty: Cloud TPU, GKE, Slurm and Open MPI say it themselves."""
    count: int = 0
    """Processes of the job. 1: this process alone, whatever the machine says. 0 (without coordinator): found out."""
    id: int = -1
    """The number of this process, from 0."""

    def __post_init__(self):
        typed(self, "hosts")
        if not self.coordinator:
            require(
                (self.count, self.id) in ((0, -1), (1, -1), (1, 0)),
                f"hosts.count is {self.count} and hosts.id {self.id}, but there is no hosts.coordinator HOST:PORT to meet at.",
            )
            return
        host, _, port = self.coordinator.rpartition(":")
        require(
            bool(host) and port.isdigit() and 0 < int(port) < 2**16,
            f"hosts.coordinator is {self.coordinator!r}; it must be HOST:PORT of process 0, such as 10.0.0.2:8476.",
        )
        require(self.count > 0, f"hosts.count is {self.count}; give the number of processes of the job.")
        require(
            0 <= self.id < self.count,
            f"hosts.id is {self.id}; with hosts.count {self.count} it must be in 0 … {self.count - 1}.",
        )
