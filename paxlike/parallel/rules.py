"""The one table that says where every dimension lives. Imports no JAX.

A mesh has the axes `pod` x `data` x `model`. Each letter of the alphabet has one row for weights and one for activations:

- **Weights** are fully sharded: the model width D over `data`, the wide dimension (heads, feed-forward, vocabulary) over
  `model`. A matmul gathers its weight over `data` just before use, in the compute dtype, and the weight's gradient is
  reduce-scattered back over `data` (see `nn/einsum.py`). Nothing of a weight lies along `pod`: every pod has a copy.
- **Activations** have their batch over `pod` and `data`. The residual stream has D over `model`, so that what is kept per
  layer is fully sharded; a projection gathers D over `model`, works on its own heads or feed-forward columns, and the
  projection back reduce-scatters onto D.

Three things follow from the letters and need no rows of their own:

- A matrix with no letter on `model` (key/value weights with fewer heads than model shards, as in multi-query attention)
  stores its D over `model` and `data` together, and its product is summed over `model`.
- A vector (norm scales, D alone) lies as the activation that it multiplies: it is too small to be worth a gather.
- K is whole where there are fewer key/value heads than model shards: each shard then reads the one that its query heads use.

`spec` and `weight_spec` raise ConfigError for a letter without a row, for two letters on one mesh axis and for a size that
does not divide. Nothing is replicated silently.
"""

from collections.abc import Mapping

from paxlike.config import ConfigError
from paxlike.parallel.axes import ALPHABET

Axis = str | tuple[str, ...] | None
"""A dimension's place: a mesh axis, several (major first), or none."""

WEIGHTS: dict[str, Axis] = {"L": None, "D": "data", "N": "model", "K": "model", "F": "model", "V": "model", "H": None}
ACTIVATIONS: dict[str, Axis] = {
    "A": None, "B": ("pod", "data"), "T": None, "S": None,
    "D": "model", "N": "model", "K": "model", "F": "model", "V": "model", "H": None,
}  # fmt: skip

MESH_AXES = ("pod", "data", "model")


def spec(dims: str, shape: tuple[int, ...], mesh: Mapping[str, int]) -> tuple[Axis, ...]:
    """Places of an activation's dimensions, a letter each. `mesh` maps each axis to its size."""
    return _checked(dims, shape, mesh, [_row(ACTIVATIONS, d, n, mesh) for d, n in zip(dims, shape, strict=True)])


def weight_spec(dims: str, shape: tuple[int, ...], mesh: Mapping[str, int]) -> tuple[Axis, ...]:
    """Places of a stored weight's dimensions. `dims` may begin with L, the stack of layers."""
    matrix = dims.removeprefix("L")
    if len(matrix) == 1:
        return _checked(dims, shape, mesh, [None] * (len(dims) - 1) + [_row(ACTIVATIONS, matrix, shape[-1], mesh)])
    places = [_row(WEIGHTS, d, n, mesh) for d, n in zip(dims, shape, strict=True)]
    if "model" not in places and "D" in dims:
        places[dims.index("D")] = ("model", "data")
    return _checked(dims, shape, mesh, places)


def gathered(places: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """A weight's places while it is used: gathered over `data`, still split over `model`."""
    kept = [tuple(axis for axis in _axes(place) if axis != "data") for place in places]
    return tuple(axes[0] if len(axes) == 1 else axes or None for axes in kept)


def _axes(place: Axis) -> tuple[str, ...]:
    return () if place is None else (place,) if isinstance(place, str) else place


def shards(place: Axis, mesh: Mapping[str, int]) -> int:
    """Into how many parts a dimension is cut."""
    parts = 1
    for axis in _axes(place):
        parts *= mesh[axis]
    return parts


def _row(table: dict[str, Axis], letter: str, size: int, mesh: Mapping[str, int]) -> Axis:
    if letter not in table:
        raise ConfigError(
            f"the dimension letter {letter!r} has no row in the sharding rules; "
            + (
                f"it means {ALPHABET[letter]}: add a row."
                if letter in ALPHABET
                else f"letters are {''.join(ALPHABET)}."
            )
        )
    if letter == "K" and size < mesh["model"]:
        if mesh["model"] % size:
            raise ConfigError(
                f"mesh.model {mesh['model']} is not a multiple of model.kv_heads {size}; each model shard uses one "
                "key/value head: choose a mesh.model that is a multiple or a divisor of kv_heads."
            )
        return None
    return table[letter]


def _checked(dims: str, shape: tuple[int, ...], mesh: Mapping[str, int], places: list[Axis]) -> tuple[Axis, ...]:
    used: dict[str, str] = {}
    for letter, size, place in zip(dims, shape, places, strict=True):
        for axis in _axes(place):
            if axis in used:
                raise ConfigError(
                    f"in {dims}, both {used[axis]} and {letter} lie on the mesh axis {axis!r}; "
                    "an axis can cut one dimension of an array: change the sharding rules."
                )
            used[axis] = letter
        if size % shards(place, mesh):
            names = " x ".join(f"{axis} {mesh[axis]}" for axis in _axes(place))
            raise ConfigError(
                f"in {dims} {tuple(shape)}, {letter} ({ALPHABET[letter]}) is {size}, which the mesh axis {names} does not "
                f"divide; change the size or the mesh ({_remedy(letter)})."
            )
    return tuple(places)


def _remedy(letter: str) -> str:
    return {
        "B": "train.batch_size, train.accumulate, mesh.data",
        "V": "model.vocab_multiple, mesh.model",
        "N": "model.heads, mesh.model",
        "K": "model.kv_heads, mesh.model",
        "F": "model.d_ff, mesh.model",
        "D": "model.d_model, mesh.data, mesh.model",
    }.get(letter, "mesh.data, mesh.model")
