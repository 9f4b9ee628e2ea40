"""Gathers and scatters the residual stream over `model` in ring steps, each behind a product.

An all-gather followed by a product leaves the device idle until all of the stream has arrived. In
ring steps the device multiplies the piece that it has while the next one is on its way (collective
matmul: Wang et al., "Overlap Communication with Dependent Computation via Decomposition", ASPLOS
2023). Autodiff turns the ring of a gather into the ring of a reduce-scatter, and the reverse.

Device i has shard i of the stream. The piece at `offset` o is the shard of device i + o. Pieces
travel in both directions; the shard of the opposite device, at an even number of devices, travels
half each way. As many bytes are sent as by an all-gather or a reduce-scatter.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from paxlike.nn.collectives import Stored
from paxlike.nn.differentiated import cotangents, differentiated
from paxlike.nn.gradient_ring import scattered_product
from paxlike.parallel.mesh import axis_sizes

Array = jax.Array


def offsets() -> list[int]:
    """The offsets of the pieces, in the order of their arrival."""
    devices = axis_sizes()["model"]
    both_ways = [o for step in range(1, (devices + 1) // 2) for o in (step, -step)]
    return [0, *both_ways, *([devices // 2] if devices % 2 == 0 else [])]


def uses_ring(ring: bool, x_BTD: Array) -> bool:
    """Whether products with the stream are in ring steps. A single token is gathered whole: it
    takes one latency instead of one per step. ring: see `Numerics`."""
    return ring and axis_sizes()["model"] > 1 and x_BTD.shape[1] > 1


def first_entry(offset: int, shard_size: int) -> Array:
    """The first entry of a piece in D, on this device."""
    return (jax.lax.axis_index("model") + offset) % axis_sizes()["model"] * shard_size


def _from(x: Array, step: int) -> Array:
    """x of the device at a distance of `step` along `model`."""
    devices = axis_sizes()["model"]
    pairs = [((i + step) % devices, i) for i in range(devices)]
    return jax.lax.ppermute(x, "model", pairs)


def _is_opposite(offset: int) -> bool:
    return offset > 0 and 2 * offset == axis_sizes()["model"]


def gathered_pieces(shard_BTD: Array) -> tuple[Array, ...]:
    """The pieces of the stream, in the order of `offsets`."""
    found, half = {0: shard_BTD}, shard_BTD.shape[-1] // 2
    for offset in offsets()[1:]:
        step = 1 if offset > 0 else -1
        if _is_opposite(offset):
            ahead, behind = found[offset - 1][..., :half], found[1 - offset][..., half:]
            found[offset] = jnp.concatenate([_from(ahead, 1), _from(behind, -1)], -1)
        else:
            found[offset] = _from(found[offset - step], step)
    return tuple(found[offset] for offset in offsets())


def joined(pieces: tuple[Array, ...], dim: int = 2) -> Array:
    """The pieces in the order of D, which is dimension `dim`."""
    size = pieces[0].shape[dim]
    shape = tuple(n * len(pieces) if i == dim else n for i, n in enumerate(pieces[0].shape))
    whole = jnp.zeros(shape, pieces[0].dtype)
    for offset, piece in zip(offsets(), pieces, strict=True):
        start = first_entry(offset, size)
        whole = jax.lax.dynamic_update_slice_in_dim(whole, piece, start, dim)
    return whole


@dataclasses.dataclass(frozen=True)
class Partial:
    """A device's term of a sum over `model`, in pieces of D in the order of `offsets`."""

    pieces: tuple[Array, ...]

    def astype(self, dtype: jax.typing.DTypeLike) -> "Partial":
        return Partial(tuple(piece.astype(dtype) for piece in self.pieces))

    def __add__(self, other: "Partial") -> "Partial":
        if not isinstance(other, Partial):
            return NotImplemented
        return Partial(tuple(a + b for a, b in zip(self.pieces, other.pieces, strict=True)))

    def __radd__(self, zero: int) -> "Partial":
        """For `sum`, which starts with 0."""
        return self

    def add_once(self, shard_D: Array) -> "Partial":
        """Adds a vector, of which each device has a shard, to the sum over `model`."""
        own, *others = self.pieces
        return Partial((own + shard_D.astype(own.dtype)[None, None], *others))

    def scattered(self) -> Array:
        """This device's shard of the sum over `model`: the farthest pieces travel first."""
        sums = dict(zip(offsets(), self.pieces, strict=True))
        half = self.pieces[0].shape[-1] // 2
        for offset in reversed(offsets()[1:]):
            step = 1 if offset > 0 else -1
            if _is_opposite(offset):
                ahead, behind = sums[offset][..., :half], sums[offset][..., half:]
                sums[offset - 1] += _widened(_from(ahead, -1), 0, behind.shape[-1])
                sums[1 - offset] += _widened(_from(behind, 1), half, 0)
            else:
                sums[offset - step] += _from(sums[offset], -step)
        return sums[0]


def in_pieces(partial_BTD: Array) -> Partial:
    """A device's term of a sum over `model`, which has all of D."""
    return Partial(tuple(_parts(partial_BTD, 2)))


def _widened(x: Array, before: int, after: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, 0), (before, after)))


# ---- products ------------------------------------------------------------------------------------
# Both have a custom gradient for the reasons given in `nn/einsum.py`, and so that the weight's
# gradient is one product with the joined pieces.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def multiply_gathered(static: tuple, pieces: tuple, stored: Stored) -> Array:
    """The product of the whole stream and a weight `D...`, in the pieces' dtype.

    static: (equation, the weight's mesh axes, the dtype of its gradient). pieces: of
    `gathered_pieces`.
    """
    equation, axes, _ = static
    weight = stored.in_use(axes, pieces[0].dtype)
    total = _summed(
        jnp.einsum(equation, x, part, preferred_element_type=jnp.float32)
        for x, part in zip(pieces, _parts(weight, 0), strict=True)
    )
    return total.astype(pieces[0].dtype)


def _gathered_forward(static, pieces, stored):
    pieces, stored = differentiated(pieces), differentiated(stored)
    kept = pieces.kept_for(stored), stored.value
    return multiply_gathered(static, pieces.value, stored.value), kept


def _gathered_backward(static, kept, dy):
    equation, axes, gradients = static
    pieces, stored = kept
    x_letters, w_letters, out = _letters(equation)
    weight = stored.in_use(axes, dy.dtype)
    dw, before_own = None, ()
    if pieces is not None:
        letters = x_letters, out, w_letters
        how = axes, (gradients, stored.shard.dtype)
        # The compiler joins the pieces once for all weights.
        dw, multiplied = scattered_product(letters, joined(pieces), dy, *how)
        # The product with the own piece waits for all pieces, so that they travel behind the
        # others, and for the weight's gradient, so that its sums travel behind this one.
        before_own = *pieces, *multiplied
    parts = [_part(weight, 0, 0, before_own), *_parts(weight, 0)[1:]]
    dxs = tuple(jnp.einsum(f"{out},{w_letters}->{x_letters}", dy, w) for w in parts)
    return dxs, Stored(dw)


multiply_gathered.defvjp(_gathered_forward, _gathered_backward, symbolic_zeros=True)


class RingSteps:
    """The products of one block whose results are scattered in ring steps, in their order.

    The farthest piece of a product is multiplied first and the one that stays on the device last.
    After its first piece, a product waits for the other pieces of the product before. Otherwise
    compilers multiply a feed-forward network's pieces before attention, and little is left to do
    while the sums of the pieces travel.
    """

    def __init__(self) -> None:
        self._others: tuple[Array, ...] = ()

    def multiply(self, static: tuple, x: Array, stored: Stored) -> Partial:
        """The product of x and a weight `...D`. static: as of `multiply_gathered`."""
        pieces = _multiply_for_scatter(static, x, stored, self._others)
        self._others = pieces[1:]
        return Partial(pieces)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply_for_scatter(static: tuple, x: Array, stored: Stored, others: tuple) -> tuple:
    """others: arrays that all pieces except the first wait for."""
    equation, axes, _ = static
    weight = stored.in_use(axes, x.dtype)
    done: dict[int, Array] = {}
    for offset in reversed(offsets()):
        # The farthest piece is multiplied first, because it travels first. The own one is last.
        after = (*others, *done.values()) if done else ()
        part = _part(weight, offset, weight.ndim - 1, after)
        done[offset] = jnp.einsum(equation, x, part)
    return tuple(done[offset] for offset in offsets())


def _scatter_forward(static, x, stored, others):
    x, stored = differentiated(x), differentiated(stored)
    pieces = _multiply_for_scatter(
        static, x.value, stored.value, tuple(differentiated(other).value for other in others)
    )
    return pieces, (x.kept_for(stored), stored.value, (None,) * len(others))


def _scatter_backward(static, kept, dys):
    equation, axes, gradients = static
    (x, stored, others), dys = kept, cotangents(dys)
    x_letters, w_letters, out = _letters(equation)
    weight = stored.in_use(axes, dys[0].dtype)
    dw, before_last = None, ()
    if x is not None:
        letters = x_letters, out, w_letters
        how = axes, (gradients, stored.shard.dtype)
        # What follows waits for the weight's gradient, so that its sums travel behind that.
        dw, before_last = scattered_product(letters, x, joined(dys), *how)
    backward, dim = f"{out},{w_letters}->{x_letters}", weight.ndim - 1

    def product(dy: Array, offset: int, after: tuple[Array, ...] = ()) -> Array:
        part = _part(weight, offset, dim, after)
        return jnp.einsum(backward, dy, part, preferred_element_type=jnp.float32)

    # The last one also waits for the sum of the others, to be added to it in its own fusion.
    *first, last = zip(dys, offsets(), strict=True)
    dx = _summed(product(*pair) for pair in first)
    dx += product(*last, (dx, *before_last))
    return dx.astype(dys[0].dtype if x is None else x.dtype), Stored(dw), others


_multiply_for_scatter.defvjp(_scatter_forward, _scatter_backward, symbolic_zeros=True)


def _summed(terms: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, terms)


def _letters(equation: str) -> tuple[str, str, str]:
    inputs, out = equation.split("->")
    x_letters, w_letters = inputs.split(",")
    return x_letters, w_letters, out


def _parts(weight: Array, dim: int) -> list[Array]:
    """The parts of a weight that belong to the pieces of D, its dimension `dim`."""
    return [_part(weight, offset, dim) for offset in offsets()]


def _part(weight: Array, offset: int, dim: int, after: tuple[Array, ...] = ()) -> Array:
    """The part that belongs to one piece.

    after: arrays that its product waits for. Compilers would compute it earlier and hide nothing
    behind it.
    """
    size = weight.shape[dim] // axis_sizes()["model"]
    first = first_entry(offset, size)
    if after:
        first, _ = jax.lax.optimization_barrier((first, after))
    return jax.lax.dynamic_slice_in_dim(weight, first, size, dim)
