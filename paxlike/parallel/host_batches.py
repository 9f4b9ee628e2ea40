"""Puts host batches on the mesh. Each process reads only the rows that its own devices hold."""

import jax
import numpy as np
from jax.sharding import NamedSharding

from paxlike.parallel.mesh import spec


def local_rows(batch_size: int, accumulate: int) -> np.ndarray:
    """The rows of a batch that this process's devices hold, ascending.

    A batch of A*B sequences is laid out as [A, B]: row a*B + b is part b of accumulation step a.
    """
    shape = (accumulate, batch_size // accumulate)
    places = NamedSharding(jax.sharding.get_mesh(), spec("AB", shape))
    rows = np.arange(batch_size).reshape(shape)
    indices = places.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([rows[index].ravel() for index in indices]))


def to_devices(
    local_BT: np.ndarray, rows: np.ndarray, batch_size: int, accumulate: int
) -> jax.Array:
    """A global [A, B, T] array from this process's rows of the batch, `local_BT` [len(rows), T].

    Every process calls it with the rows from `local_rows`. Raises ValueError if one is missing.
    """
    shape = (accumulate, batch_size // accumulate, local_BT.shape[-1])
    places = NamedSharding(jax.sharding.get_mesh(), spec("ABT", shape))
    row_of = np.full(batch_size, -1)
    row_of[rows] = np.arange(len(rows))
    grid = row_of.reshape(shape[:2])

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        wanted = grid[index[:2]]
        if (wanted < 0).any():
            raise ValueError(
                f"the devices of this process need rows of the batch other than {rows.tolist()}."
            )
        return local_BT[wanted][..., index[2]]

    return jax.make_array_from_callback(shape, places, part)
