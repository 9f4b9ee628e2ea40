"""A fingerprint of parameters: equal on every mesh, and of other numbers another one.

An adapter fits only the base that it was trained on. The devices hash their shards; no parameter is
gathered.
"""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from paxlike.nn.collectives import index, on_devices
from paxlike.nn.dropout import mixed
from paxlike.parallel import rules
from paxlike.parallel.mesh import axis_sizes

Array = jax.Array

WORDS = 4
"""uint32 sums of every array."""


def fingerprint(params: dict) -> str:
    """Hexadecimal digits. params: nested dict of arrays on the active mesh, in their dtype."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    rows = []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        sums = np.asarray(_sums(leaf)).tolist()
        rows.append([name, str(leaf.dtype), list(leaf.shape), sums])
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()


@jax.jit
def _sums(array: Array) -> Array:
    """uint32 [WORDS]: sums modulo 2^32 of hashes of every number and its place."""
    spec = jax.typeof(array).sharding.spec
    places = (*spec, *(None,) * (array.ndim - len(spec)))

    def device(shard: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(shard, f"uint{8 * shard.dtype.itemsize}")
        x = bits.astype(jnp.uint32)
        for dim, place in enumerate(places):
            numbers = jnp.arange(shard.shape[dim], dtype=jnp.uint32)
            start: Array | int = 0
            for axis in rules.axes_of(place):
                start = start * axis_sizes()[axis] + index(axis)
            numbers += jnp.asarray(start * shard.shape[dim], jnp.uint32)
            shape = [1] * shard.ndim
            shape[dim] = -1
            x = mixed(x + mixed(numbers + np.uint32(0x9E3779B1 * (dim + 1) % 2**32)).reshape(shape))
        sums = jnp.stack(
            [mixed(x + np.uint32(word)).sum(dtype=jnp.uint32) for word in range(WORDS)]
        )
        held = tuple(axis for place in places for axis in rules.axes_of(place))
        return jax.lax.psum(sums, held) if held else sums

    return on_devices(device, PartitionSpec(*places), PartitionSpec())(array)
