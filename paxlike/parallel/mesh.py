"""The mesh (`pod`, `data`, `expert`, `model`), and shardings on it by dimension letters.

The mesh uses JAX's explicit mode: an array's sharding is part of its type, so an ambiguous layout
is an error at tracing time, on any machine, before the program runs on a cluster.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from paxlike.config import ConfigError, MeshConfig
from paxlike.parallel import rules
from paxlike.parallel.axes import as_letters


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Creates the mesh over all devices (or the given ones), laid out along the physical links.

    If `pod` equals the number of slices, the mesh is hybrid: `pod` is between slices, the others
    are within a slice. The mesh has the axis `expert` only if its size is above 1. Raises
    ConfigError if the sizes do not fit the number of devices, or `pod` does not fit the number of
    TPU slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = config.resolve(len(devices))
    pod, shape = sizes["pod"], tuple(sizes.values())
    slices = {getattr(device, "slice_index", None) for device in devices}
    if devices[0].platform == "tpu" and len(slices) > 1 and len(slices) != pod:
        raise ConfigError(
            f"mesh.pod is {pod}, but the devices are {len(slices)} TPU slices, connected only by "
            f"the data-center network; set mesh.pod to {len(slices)}."
        )
    if pod > 1 and len(slices) == pod:
        inside = shape[1:]
        grid = mesh_utils.create_hybrid_device_mesh(
            (1, *inside), (pod, *(1 for _ in inside)), devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes))


def axis_sizes() -> Mapping[str, int]:
    """Returns axis -> size of the active mesh (`jax.set_mesh`)."""
    return jax.sharding.get_abstract_mesh().shape


def batch_shards() -> int:
    """Returns the number of parts of the batch on the active mesh."""
    return rules.size_of(rules.BATCH_AXES, axis_sizes())


def spec(dims: str | Sequence[str], shape: Sequence[int]) -> PartitionSpec:
    """Returns an activation's PartitionSpec on the active mesh. dims: letters or T5X's logical
    axes.
    """
    return PartitionSpec(*rules.spec(as_letters(dims), tuple(shape), axis_sizes()))


def weight_spec(dims: str | Sequence[str], shape: Sequence[int]) -> PartitionSpec:
    """Returns a stored weight's PartitionSpec on the active mesh. dims: as in `spec`."""
    return PartitionSpec(*rules.weight_spec(as_letters(dims), tuple(shape), axis_sizes()))


LARGE_BYTES = 2**25
"""Arrays of at least this size must be sharded (see `check_sharded`).

GPT-3 175B's stacked biases, which are replicated if `model` is 1, have half this size; its smallest
matrix has a thousand times this size.
"""


def check_sharded(tree: object, large_bytes: int = LARGE_BYTES) -> None:
    """Raises ValueError naming every array of at least `large_bytes` that is replicated.

    tree: arrays or ShapeDtypeStructs with a NamedSharding.
    """
    replicated = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        sharding: NamedSharding = leaf.sharding
        shape = sharding.mesh.shape
        shard_count = rules.size_of((*rules.GATHERED_AXES, "model"), shape)
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if (
            size >= large_bytes
            and shard_count > 1
            and math.prod(sharding.shard_shape(leaf.shape)) == math.prod(leaf.shape)
        ):
            replicated.append(
                f"{jax.tree_util.keystr(path, simple=True, separator='/')} {leaf.shape} ({size:,} "
                "bytes)"
            )
    if replicated:
        raise ValueError(
            f"arrays of at least {large_bytes:,} bytes are replicated on every device: "
            f"{'; '.join(replicated)}. Name their dimensions with letters that the sharding rules "
            "shard over `data` or `model`."
        )
