"""The first parameters of a run that starts from a trained model, read straight onto the mesh.

A stacked parameter is created on the devices and filled layer by layer, so that the host holds a
layer at a time, and of it only the parts of its own devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from paxlike.config import Config
from paxlike.models.decoder import init_params
from paxlike.nn.numerics import Numerics
from paxlike.parallel.axes import is_stacked
from paxlike.training.init_parts import Sliceable, full
from paxlike.training.init_plan import Origin

AT_ONCE = 2**25
"""Stacked parameters of at most this many bytes are read without a step for each layer."""


def first_params(
    config: Config, numerics: Numerics, like: dict, origins: dict[str, Origin]
) -> dict:
    """Parameters on the active mesh, by their origins. like: of `abstract_params`."""
    new = _new_params(config, numerics, [n for n, origin in origins.items() if not origin.read])
    paths, tree = jax.tree_util.tree_flatten_with_path(like)
    leaves = []
    for path, leaf in paths:
        origin = origins[name := name_of(path)]
        leaves.append(load(name, origin, leaf) if origin.read else new.pop(name))
    return jax.tree_util.tree_unflatten(tree, leaves)


def name_of(path: tuple) -> str:
    """The checkpoint name of a leaf, such as `blocks/wq_DNH`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _new_params(config: Config, numerics: Numerics, names: list[str]) -> dict[str, jax.Array]:
    """These parameters as a new run has them; the compiler leaves out the others."""

    def draw() -> dict[str, jax.Array]:
        params = init_params(config.model, numerics, config.train.seed)
        paths = jax.tree_util.tree_leaves_with_path(params)
        return {name: leaf for path, leaf in paths if (name := name_of(path)) in names}

    return jax.jit(draw)() if names else {}


def load(name: str, origin: Origin, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """A parameter on the mesh. leaf: its shape, dtype and sharding."""
    assert origin.read is not None
    if not is_stacked(name):
        return _onto_devices([origin.read(None)], leaf.shape, leaf.dtype, leaf.sharding)
    layers, *one = leaf.shape
    if leaf.size * leaf.dtype.itemsize <= AT_ONCE:
        parts = [origin.read(layer) for layer in range(layers)]
        return _onto_devices(parts, leaf.shape, leaf.dtype, leaf.sharding, stacked=True)
    sharding = NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[1:]))
    make = jax.jit(
        functools.partial(jnp.zeros, leaf.shape, leaf.dtype), out_shardings=leaf.sharding
    )
    stack = make()
    for layer in range(layers):
        value = _onto_devices([origin.read(layer)], tuple(one), leaf.dtype, sharding)
        # Waiting bounds the layers that are on their way.
        stack = jax.block_until_ready(_put(stack, value, layer))
    return stack


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack: jax.Array, value: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, value, layer, 0)


def _onto_devices(
    parts: list[Sliceable],
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: NamedSharding,
    stacked: bool = False,
) -> jax.Array:
    """An array on the mesh. Each process reads only the parts of its own devices."""
    read: dict[tuple, np.ndarray] = {}

    def part(given: tuple[slice, ...] | None) -> np.ndarray:
        assert given is not None
        index = full(given, shape)
        key = tuple((one.start, one.stop) for one in index)
        if key not in read:  # devices that hold copies share one
            if stacked:
                layers = [
                    numbers(parts[n], index[1:], dtype) for n in range(*index[0].indices(shape[0]))
                ]
                read[key] = np.stack(layers)
            else:
                read[key] = numbers(parts[0], index, dtype)
        return read[key]

    return jax.make_array_from_callback(shape, sharding, part)


def numbers(parts: Sliceable, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
    """A part as an array of its own, so that the file behind it can be closed."""
    part = np.asarray(parts[index])
    own = part.flags.owndata
    return np.asarray(part, dtype, order="C") if own else np.array(part, dtype, order="C")
