"""The primitives that a device's program communicates with, and `on_devices`, which runs one.

The model is the program of one device: `jnp` on local arrays and these functions, inside one
`jax.shard_map`. Autodiff derives the backward collectives: the transpose of an all-gather is a
reduce-scatter, that of a reduce-scatter an all-gather, that of a sum a sum. Every function is the
identity over a mesh axis of size 1.

**What is differentiated.** Gradients are taken inside the map, of the sum over all devices of each
device's scalar. Two consequences for whoever writes a layer or a loss:

- A scalar that several devices compute alike (it is replicated over `model`) counts once for each:
  divide it by the number of copies (`share_over_model`).
- A parameter that several devices hold a copy of needs the sum of their gradients:
  `sum_gradient_over_copies`, which `models/decoder.py` applies to every parameter.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax

from paxlike.parallel import rules
from paxlike.parallel.mesh import axis_sizes

Array = jax.Array
Leaf: TypeAlias = Any
"""A field of a tree of arrays that also exists as the tree of their PartitionSpecs or shapes."""


def on_devices(device: Callable, in_specs, out_specs) -> Callable:
    """`device` run on every device of the active mesh, on its local arrays (`jax.shard_map`).

    Replication of outputs is by construction and not checked by JAX, whose types for it do not
    cover the attention kernels (`check_vma`, jax 0.10 to 0.12).
    """
    return jax.shard_map(device, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def specs_of(tree):
    """The PartitionSpec of every array of a tree, to pass to `on_devices`."""
    return jax.tree.map(lambda x: jax.typeof(x).sharding.spec, tree)


def _sized(axes: str | Sequence[str]) -> tuple[str, ...]:
    """The axes whose size is more than 1. Without a mesh there are none."""
    axes = (axes,) if isinstance(axes, str) else axes
    return tuple(axis for axis in axes if axis_sizes().get(axis, 1) > 1)


# ---- moving and summing --------------------------------------------------------------------------


def gather(x: Array, axes: str | Sequence[str], dim: int) -> Array:
    """The shards of dimension `dim` from all devices along one or more axes, concatenated."""
    if not (names := _sized(axes)):
        return x
    return jax.lax.all_gather(x, _one_or_several(names), axis=dim, tiled=True)


def scatter(x: Array, axes: str | Sequence[str], dim: int) -> Array:
    """The sum over one or more axes, of which each device keeps its shard of dimension `dim`."""
    if not (names := _sized(axes)):
        return x
    return jax.lax.psum_scatter(x, _one_or_several(names), scatter_dimension=dim, tiled=True)


def _one_or_several(names: tuple[str, ...]) -> str | tuple[str, ...]:
    return names[0] if len(names) == 1 else names


def total(x: Array, axes: str | Sequence[str]) -> Array:
    """The sum over one or more axes, on every device."""
    return jax.lax.psum(x, _sized(axes)) if _sized(axes) else x


def mean(x: Array, axes: str | Sequence[str]) -> Array:
    return jax.lax.pmean(x, _sized(axes)) if _sized(axes) else x


def greatest(x: Array, axes: str | Sequence[str]) -> Array:
    """The maximum over one or more axes. It has no gradient."""
    x = jax.lax.stop_gradient(x)
    return jax.lax.pmax(x, _sized(axes)) if _sized(axes) else x


def index(axes: str | Sequence[str]) -> Array | int:
    """This device's position along one or more axes, major first."""
    names = _sized(axes)
    return jax.lax.axis_index(_one_or_several(names)) if names else 0


def whole_batch(x: Array, dim: int = 0) -> Array:
    """A dimension of the batch, on every device. One axis at a time, the innermost first."""
    for axis in reversed(rules.BATCH_AXES):
        x = gather(x, axis, dim)
    return x


def own_part(x: Array, axis: str, dim: int) -> Array:
    """This device's shard of a dimension that every device has whole."""
    if not _sized(axis):
        return x
    size = x.shape[dim] // axis_sizes()[axis]
    return jax.lax.dynamic_slice_in_dim(x, index(axis) * size, size, dim)


def share_over_model(x: Array) -> Array:
    """A value that every device along `model` computes alike, divided by their number."""
    return x / axis_sizes().get("model", 1)


# ---- weights -------------------------------------------------------------------------------------


def gather_weight(w: Array, places: tuple[rules.Axis, ...], dtype: jax.typing.DTypeLike) -> Array:
    """A stored shard -> the weight as it is used, gathered over `data` and, except for weights of
    experts, over `expert`. It is cast first to send the compute dtype."""
    w = w.astype(dtype)
    for dim, place in enumerate(places):
        w = gather(w, rules.gathered_axes(place), dim)
    return w


def is_gathered(places: tuple[rules.Axis, ...]) -> bool:
    """Whether `gather_weight` communicates."""
    return any(_sized(rules.gathered_axes(place)) for place in places)


class Stored(NamedTuple):
    """A weight of a layer as it is stored."""

    shard: Array
    gathered: Array | None = None
    """The weight as it is used, if the loop over layers gathered it (`nn/layer_loop.py`). The
    gradient is that of the shard."""

    def in_use(self, places: tuple[rules.Axis, ...], dtype: jax.typing.DTypeLike) -> Array:
        """places: of the shard."""
        if self.gathered is not None:
            return self.gathered
        return gather_weight(self.shard, places, dtype)


def scatter_gradient(
    dw: Array, places: tuple[rules.Axis, ...], dtype: jax.typing.DTypeLike
) -> Array:
    """A gathered weight's gradient -> the stored shard's, summed in its own dtype."""
    for dim, place in enumerate(places):
        dw = scatter(dw, rules.gathered_axes(place), dim)
    return dw.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def sum_gradient_over_copies(w: Array, places: tuple[rules.Axis, ...], dtype: str) -> Array:
    """w itself, whose gradient is summed in `dtype` over the mesh axes that hold copies of it."""
    return w


def _copies_backward(places, dtype, _, dw):
    held = {axis for place in places for axis in rules.axes_of(place)}
    copies = tuple(axis for axis in rules.MESH_AXES if axis not in held)
    return (total(dw.astype(dtype), copies).astype(dw.dtype),)


sum_gradient_over_copies.defvjp(lambda w, places, dtype: (w, None), _copies_backward)
