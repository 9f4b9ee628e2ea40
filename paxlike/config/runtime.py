"""How a run uses its hardware: mesh, precision, processes."""

import dataclasses
import math
from typing import Literal

from paxlike.config.validation import require, suggest_divisors, typed


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes. One axis may be -1: it takes the remaining devices."""

    pod: int = 1
    """Slices joined by the data-center network, which only carries gradient reductions."""
    data: int = -1
    """Data parallelism; the weights are also sharded over it (FSDP)."""
    model: int = 1
    """Tensor parallelism."""
    expert: int = 1
    """Expert parallelism: the experts of a layer are sharded over it, and all else as over data
    (docs/experts.md)."""
    expert_transport: Literal["gather", "all_to_all"] = "gather"
    """How tokens reach the experts of other devices, if expert is above 1."""

    def __post_init__(self):
        typed(self, "mesh")
        require(self.expert > 0, f"mesh.expert is {self.expert}; give a size above 0.")
        for field in ("pod", "data", "model"):
            value = getattr(self, field)
            require(
                value == -1 or value > 0,
                f"mesh.{field} is {value}; give a size above 0, or -1 for the remaining devices.",
            )
        require(
            [self.pod, self.data, self.model].count(-1) <= 1,
            f"mesh {self.pod} x {self.data} x {self.model} has -1 more than once; only one axis "
            "can take the remaining devices.",
        )

    @property
    def axes(self) -> dict[str, int]:
        """Axis -> size or -1, major first. A mesh has the axis `expert` only if it is above 1."""
        expert = {"expert": self.expert} if self.expert > 1 else {}
        return {"pod": self.pod, "data": self.data, **expert, "model": self.model}

    def resolve(self, devices: int) -> dict[str, int]:
        """Axis -> size, major first, for a number of devices. Raises ConfigError if they do not
        fit.
        """
        require(devices > 0, f"the number of devices is {devices}; it must be greater than 0.")
        known = math.prod(size for size in self.axes.values() if size != -1)
        sizes = {axis: devices // known if size == -1 else size for axis, size in self.axes.items()}
        given = " x ".join(f"{axis} {size}" for axis, size in self.axes.items())
        require(
            math.prod(sizes.values()) == devices,
            f"mesh {given} does not fit {devices} "
            f"devices; choose mesh.model among {suggest_divisors(devices, self.model)}, or give "
            "--fake-devices N to try another number of devices on the CPU.",
        )
        return sizes


DType = Literal["bfloat16", "float32"]


@dataclasses.dataclass(frozen=True)
class PrecisionConfig:
    """Number formats (dtypes)."""

    compute: Literal["auto", "bfloat16", "float32"] = "auto"
    """Matmuls and activations. auto: bfloat16 where it is faster, that is on accelerators and, from
    JAX 0.12 on, on CPUs with AMX or AVX512-BF16 instructions; float32 otherwise."""
    params: DType = "float32"
    """Stored parameters. Optimizer moments are always float32."""
    gradients: DType = "float32"
    """The dtype in which gradients are reduced over data and pod."""

    def __post_init__(self):
        typed(self, "precision")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The processes of a job. Not part of a config: a run resumes on any number of processes."""

    coordinator: str = ""
    """HOST:PORT where process 0 listens. Empty: taken from Cloud TPU, GKE, Slurm or Open MPI."""
    count: int = 0
    """Number of processes. 0: detected (no coordinator). 1: only this one, even in a cluster."""
    id: int = -1
    """Index of this process, from 0."""

    def __post_init__(self):
        typed(self, "hosts")
        if not self.coordinator:
            require(
                (self.count, self.id) in ((0, -1), (1, -1), (1, 0)),
                f"hosts.count is {self.count} and hosts.id is {self.id}, but hosts.coordinator is "
                "not set; give HOST:PORT of process 0.",
            )
            return
        host, _, port = self.coordinator.rpartition(":")
        require(
            bool(host) and port.isdigit() and 0 < int(port) < 2**16,
            f"hosts.coordinator is {self.coordinator!r}; it must be HOST:PORT of process 0, "
            "such as 10.0.0.2:8476.",
        )
        require(
            self.count > 0, f"hosts.count is {self.count}; give the number of processes of the job."
        )
        require(
            0 <= self.id < self.count,
            f"hosts.id is {self.id}; with hosts.count {self.count} it must be in "
            f"0 ... {self.count - 1}.",
        )
