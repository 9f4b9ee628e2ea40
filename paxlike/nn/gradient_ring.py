"""A weight's gradient summed and scattered over `data` in ring steps, each behind a product.

A reduce-scatter of the whole gradient can start only after its product, and some chips have no
asynchronous one: the device waits. Here the product is computed in parts, and the sum of a part is
on its way while the next part is multiplied (Wang et al., "Overlap Communication with Dependent
Computation via Decomposition", ASPLOS 2023).

Position p of `data` is (p // inner, p % inner): rings of `outer` devices, whose permutations hide
behind the parts, and then rings of `inner` devices for the scattered sum. Both are rings of the
torus if `data` spans two equal dimensions of it. Half of the columns travel each way. As many
bytes are sent as by a reduce-scatter, and sums are rounded to the gradient's dtype after every
step, as in one.
"""

import math

import jax
import jax.numpy as jnp

from paxlike.nn.collectives import scatter_gradient
from paxlike.parallel import rules
from paxlike.parallel.mesh import axis_sizes

Array = jax.Array

DEVICE_KINDS = ("TPU v4",)
"""Chips that wait for reduce-scatters. Those with SparseCores have an asynchronous one: there, the
compiled schedule is faster without the steps (docs/performance.md)."""


def _on_waiting_chip() -> bool:
    """Whether the active mesh is of chips in `DEVICE_KINDS`."""
    return jax.sharding.get_abstract_mesh().abstract_device.device_kind in DEVICE_KINDS


def scattered_product(
    letters: tuple[str, str, str],
    x: Array,
    dy: Array,
    places: tuple[rules.Axis, ...],
    dtypes: tuple[jax.typing.DTypeLike, jax.typing.DTypeLike],
) -> tuple[Array, tuple[Array, ...]]:
    """(The gradient x^T dy of a gathered weight, summed over `data`: the stored shard's; arrays
    that exist as soon as its last part is multiplied, none if it is not in steps).

    letters: of x, dy and the weight. places: of the stored weight's dimensions. dtypes: in which
    the gradient is summed, and of the result.
    """
    x_letters, dy_letters, w_letters = letters
    sizes = dict(zip(x_letters + dy_letters, x.shape + dy.shape, strict=True))
    dims = [dim for dim, place in enumerate(places) if rules.gathered_axes(place)]
    rows = w_letters[dims[0]] if dims else ""
    columns = max(w_letters.replace(rows, ""), key=sizes.__getitem__)

    def product(x: Array, dy: Array) -> Array:
        return jnp.einsum(
            f"{x_letters},{dy_letters}->{w_letters}", x, dy, preferred_element_type=dtypes[0]
        )

    if not _in_steps(places, dims) or sizes[columns] % 2:
        return scatter_gradient(product(x, dy), places, dtypes[1]), ()
    inner = _inner(axis_sizes()["data"])
    outer = axis_sizes()["data"] // inner
    half, part = sizes[columns] // 2, sizes[rows] // outer

    def of_part(number: int, chunk: Array) -> Array:
        """The gradient's rows of one part, half of the columns."""
        operands = []
        for array, names in ((x, x_letters), (dy, dy_letters)):
            if columns in names:
                begin, dim = number * half, names.index(columns)
                array = jax.lax.slice_in_dim(array, begin, begin + half, axis=dim)
            if rows in names:
                array = jax.lax.dynamic_slice_in_dim(array, chunk * part, part, names.index(rows))
            operands.append(array)
        return product(*operands)

    halves, multiplied = [], []
    for number, way in ((0, 1), (1, -1)):
        position = jax.lax.axis_index("data") // inner
        total = of_part(number, (position - way) % outer)
        for step in range(2, outer + 1):
            # Otherwise the compiler computes all products first and hides nothing.
            chunk, total = jax.lax.optimization_barrier(((position - way * step) % outer, total))
            total = _moved(total, way, outer, inner) + of_part(number, chunk)
        multiplied.append(total)
        halves.append(_scattered(total, dims[0], way, inner))
    gradient = jax.lax.concatenate(halves, w_letters.index(columns)).astype(dtypes[1])
    return gradient, tuple(multiplied)


def _in_steps(places: tuple[rules.Axis, ...], dims: list[int]) -> bool:
    whole_axis = [rules.axes_of(places[dim]) for dim in dims] == [("data",)]
    return whole_axis and axis_sizes()["data"] > 1 and _on_waiting_chip()


def _inner(devices: int) -> int:
    """The largest divisor up to the square root."""
    return next(n for n in range(math.isqrt(devices), 0, -1) if devices % n == 0)


def _moved(x: Array, way: int, ring: int, stride: int) -> Array:
    """x of the previous device in rings of positions that are `stride` apart."""
    pairs = []
    for source in range(axis_sizes()["data"]):
        i = source // stride % ring
        pairs.append((source, source + ((i + way) % ring - i) * stride))
    return jax.lax.ppermute(x, "data", pairs)


def _scattered(x: Array, dim: int, way: int, ring: int) -> Array:
    """The sum over rings of neighbors, of which each device keeps its shard of dimension `dim`."""
    position, size = jax.lax.axis_index("data") % ring, x.shape[dim] // ring

    def chunk(step: int) -> Array:
        begin = (position - way * step) % ring * size
        return jax.lax.dynamic_slice_in_dim(x, begin, size, dim)

    total = chunk(1)
    for step in range(2, ring + 1):
        total = _moved(total, way, ring, 1) + chunk(step)
    return total
