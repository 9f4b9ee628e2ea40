"""The mesh (`pod`, `data`, `model`) and shardings on it, by dimension letters.

The mesh is in JAX's explicit mode: an array's sharding is part of its type, so that an ambiguous layout is an error when the
program is traced, on a laptop, and not a surprise on the pod.
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
    """The mesh over all devices (or over the given ones), laid out along the machine's own links.

    Several pods on TPU slices or on hosts that name their slice get a hybrid mesh: `pod` runs between slices, `data` and
    `model` inside one. Raises ConfigError where the sizes do not fit the number of devices, or `pod` the number of TPU slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    pod, data, model = config.resolve(len(devices))
    slices = {getattr(device, "slice_index", None) for device in devices}
    if devices[0].platform == "tpu" and len(slices) > 1 and len(slices) != pod:
        raise ConfigError(
            f"mesh.pod is {pod}, but the devices are {len(slices)} TPU slices, which only the data-center network joins: "
            f"set mesh.pod to {len(slices)}."
        )
    if pod > 1 and len(slices) == pod:
        grid = mesh_utils.create_hybrid_device_mesh(
            (1, data, model), (pod, 1, 1), devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh((pod, data, model), devices, allow_split_physical_axes=True)
    else:
        grid = np.asarray(devices).reshape(pod, data, model)
    return Mesh(grid, rules.MESH_AXES, axis_types=(AxisType.Explicit,) * 3)


def axis_sizes() -> Mapping[str, int]:
    """Axis -> size of the mesh in force (`jax.set_mesh`)."""
    return jax.sharding.get_abstract_mesh().shape


def spec(dims: str | Sequence[str], shape: Sequence[int]) -> PartitionSpec:
    """An activation's PartitionSpec on the mesh in force. `dims`: letters, or T5X's logical axis names."""
    return PartitionSpec(*rules.spec(as_letters(dims), tuple(shape), axis_sizes()))


def weight_spec(dims: str | Sequence[str], shape: Sequence[int]) -> PartitionSpec:
    """A stored weight's PartitionSpec on the mesh in force. `dims`: letters, or T5X's logical axis names."""
    return PartitionSpec(*rules.weight_spec(as_letters(dims), tuple(shape), axis_sizes()))


LARGE_BYTES = 2**24
"""An array of this size or larger must not be whole on a device (see `check_sharded`). The stacked norm scales of PaLM 540B, which
lie whole where `model` is 1, are half as large; its smallest matrix is a hundred times as large."""


def check_sharded(tree: object, large_bytes: int = LARGE_BYTES) -> None:
    """Raises ValueError naming every array of `large_bytes` or more that some device holds whole.

    `tree` has arrays or ShapeDtypeStructs with a NamedSharding.
    """
    replicated = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        sharding: NamedSharding = leaf.sharding
        shape = sharding.mesh.shape
        wanted = shape["data"] * shape["model"]
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if size >= large_bytes and wanted > 1 and math.prod(sharding.shard_shape(leaf.shape)) == math.prod(leaf.shape):
            replicated.append(f"{jax.tree_util.keystr(path, simple=True, separator='/')} {leaf.shape} ({size:,} bytes)")
    if replicated:
        raise ValueError(
            f"replicated on every device, though larger than {large_bytes:,} bytes: {'; '.join(replicated)}. "
            "Give its dimensions letters that the sharding rules place on `data` or `model`."
        )
