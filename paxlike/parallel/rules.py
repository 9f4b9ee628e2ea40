"""The sharding rules: one table from dimension letters to mesh axes. Imports no JAX.

The mesh axes are `pod` x `data` x `expert` x `model`. A mesh without expert parallelism has no axis
`expert`, and its places leave that axis out. Each letter has one row for weights and one for
activations:

- **Weights** are fully sharded: the model width D over `data` and `expert`, and the wide dimension
  (heads, feed-forward, vocabulary) over `model`. A matmul gathers its weight over `data` and
  `expert` just before use, in the compute dtype; the weight's gradient is reduce-scattered over
  them (see `nn/einsum.py`). Weights are replicated over `pod`.
- **Weights of experts**, which begin with E, have E over `expert` and D over `data`: a device
  gathers only those of its own experts.
- **Activations** have their batch sharded over `pod`, `data` and `expert`. The residual stream has
  D over `model`, so activations saved per layer are fully sharded. A projection gathers D over
  `model` and computes its own heads or feed-forward columns; the output projection reduce-scatters
  over D.

Five cases follow from the letters and need no rows:

- A matrix with no letter on `model` (key/value weights with fewer heads than model shards, as in
  multi-query attention) has its D sharded over `model`, `data` and `expert` together, and its
  product is summed over `model`.
- A router's weight is such a matrix, too: behind D, E is not sharded, so every device computes all
  logits.
  So is that of the predictor of routed tokens (X).
- A vector (norm scales, D alone) is sharded like the activation that it multiplies, because it is
  too small to be worth a gather.
- K is replicated if there are fewer key/value heads than model shards. Each shard then uses the
  head that its query heads share.
- R, Q and I, the letters of adapters, are replicated if another letter is over `data`, or if `data`
  does not divide them, and always over `expert`: an adapter is thousands of times smaller than its
  base.

`spec` and `weight_spec` raise ConfigError for a letter without a row, for two letters on one mesh
axis, and for a size that the axis does not divide. Nothing is replicated silently.
"""

import math
from collections.abc import Iterable, Mapping

from paxlike.config import ConfigError
from paxlike.parallel.axes import ALPHABET

Axis = str | tuple[str, ...] | None
"""Where a dimension is sharded: over one mesh axis, several (major first), or none."""

MESH_AXES = ("pod", "data", "expert", "model")
BATCH_AXES = ("pod", "data", "expert")
"""What the batch is sharded over, and what sums over it are taken over."""
GATHERED_AXES = ("data", "expert")
"""What a weight is gathered over where it is used. A dimension is, if it is sharded over `data`."""

WEIGHTS: dict[str, Axis] = {
    "L": None,
    "D": GATHERED_AXES,
    "N": "model",
    "K": "model",
    "F": "model",
    "V": "model",
    "P": "model",
    "H": None,
    "R": "data",
    "Q": "data",
    "I": "data",
    "E": "expert",
    "M": "model",
    "U": "model",
    "X": None,
}
ACTIVATIONS: dict[str, Axis] = {
    "A": None, "B": BATCH_AXES, "T": None, "S": None, "W": None,
    "D": "model", "N": "model", "K": "model", "F": "model", "V": "model", "H": None,
    "R": None, "I": None, "E": None, "M": "model", "U": "model", "O": None, "X": None,
}  # fmt: skip


def spec(dims: str, shape: tuple[int, ...], mesh: Mapping[str, int]) -> tuple[Axis, ...]:
    """Returns the mesh axes of each dimension of an activation. mesh: axis -> size."""
    return _checked(
        dims, shape, mesh, [_row(ACTIVATIONS, d, n, mesh) for d, n in zip(dims, shape, strict=True)]
    )


def weight_spec(dims: str, shape: tuple[int, ...], mesh: Mapping[str, int]) -> tuple[Axis, ...]:
    """Returns the mesh axes of each dimension of a stored weight. dims may start with L."""
    matrix = dims.removeprefix("L")
    if len(matrix) == 1:
        return _checked(
            dims,
            shape,
            mesh,
            [None] * (len(dims) - 1) + [_row(ACTIVATIONS, matrix, shape[-1], mesh)],
        )
    places = [_row(WEIGHTS, d, n, mesh) for d, n in zip(dims, shape, strict=True)]
    if matrix[0] == "E" and "D" in dims:
        places[dims.index("D")] = "data"
    elif "E" in dims:
        places[dims.index("E")] = None
    for letter in "RQI":
        if letter in dims and ("D" in dims or shape[dims.index(letter)] % mesh["data"]):
            places[dims.index(letter)] = None
    if "model" not in places and "D" in dims:
        places[dims.index("D")] = ("model", *axes_of(places[dims.index("D")]))
    return _checked(dims, shape, mesh, places)


def gathered(places: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Returns a weight's mesh axes after it is gathered; `model`, and `expert` of E, remain."""
    kept = []
    for place in places:
        gone = gathered_axes(place)
        kept.append(_place(tuple(axis for axis in axes_of(place) if axis not in gone)))
    return tuple(kept)


def gathered_axes(place: Axis) -> tuple[str, ...]:
    """Returns the mesh axes over which a dimension of a weight is gathered in use."""
    axes = axes_of(place)
    return tuple(axis for axis in axes if axis in GATHERED_AXES) if "data" in axes else ()


def axes_of(place: Axis) -> tuple[str, ...]:
    """Returns the mesh axes of one dimension as a tuple."""
    return () if place is None else (place,) if isinstance(place, str) else place


def _place(axes: tuple[str, ...]) -> Axis:
    return axes[0] if len(axes) == 1 else axes or None


def shards(place: Axis, mesh: Mapping[str, int]) -> int:
    """Returns the number of shards of a dimension."""
    return size_of(axes_of(place), mesh)


def size_of(axes: Iterable[str], mesh: Mapping[str, int]) -> int:
    """Returns the product of the sizes of mesh axes. A mesh may lack `expert`, which is then 1."""
    return math.prod(mesh.get(axis, 1) if axis == "expert" else mesh[axis] for axis in axes)


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
                f"mesh.model {mesh['model']} is not a multiple of model.kv_heads {size}: each "
                "model shard uses one key/value head; choose a mesh.model that is a multiple or a "
                "divisor of kv_heads."
            )
        return None
    return table[letter]


def _checked(
    dims: str, shape: tuple[int, ...], mesh: Mapping[str, int], places: list[Axis]
) -> tuple[Axis, ...]:
    places = [_place(tuple(a for a in axes_of(p) if a != "expert" or a in mesh)) for p in places]
    used: dict[str, str] = {}
    for letter, size, place in zip(dims, shape, places, strict=True):
        for axis in axes_of(place):
            if axis in used:
                raise ConfigError(
                    f"in {dims}, both {used[axis]} and {letter} are sharded over the mesh axis "
                    f"{axis!r}; an axis can shard only one dimension of an array: change the "
                    "sharding rules."
                )
            used[axis] = letter
        if size % shards(place, mesh):
            names = " x ".join(f"{axis} {mesh[axis]}" for axis in axes_of(place))
            raise ConfigError(
                f"in {dims} {tuple(shape)}, {letter} ({ALPHABET[letter]}) is {size}, which the "
                f"mesh axis {names} does not divide; change the size or the mesh "
                f"({_remedy(letter)})."
            )
    return tuple(places)


def _remedy(letter: str) -> str:
    return {
        "B": "train.batch_size, train.accumulate, mesh.data",
        "E": "model.experts.count, mesh.expert",
        "V": "model.vocab_multiple, mesh.model",
        "P": "model.learned_positions, mesh.model",
        "N": "model.heads, mesh.model",
        "K": "model.kv_heads, mesh.model",
        "F": "model.d_ff, mesh.model",
        "M": "model.experts.d_ff, mesh.model",
        "U": "model.experts.shared, model.experts.d_ff, mesh.model",
        "D": "model.d_model, mesh.data, mesh.model",
    }.get(letter, "mesh.data, mesh.model")
