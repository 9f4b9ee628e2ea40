"""Routing of tokens to experts: scores, selection, the order of rows, and statistics.

Router arithmetic is in float32: logits rounded to bfloat16 select other experts. Every device along
`model` computes the logits of its own tokens alike, so that all of them select the same experts.

Letters: T tokens of this device, E experts, J experts of one token, C = T J rows of the experts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paxlike.config.experts import ExpertsConfig
from paxlike.nn.collectives import gather_weight, own_part, total
from paxlike.nn.einsum import Kernel
from paxlike.nn.ring import joined, uses_ring
from paxlike.nn.stream import Stream
from paxlike.parallel.mesh import axis_sizes

Array = jax.Array

SMALLEST_SUM = 1e-20
"""Added to a sum of scores before it divides: sigmoids may all underflow."""


def whole_tokens(y_BTD: Stream, ring: bool) -> Array:
    """The stream with all of D, as the other products of the block gather it."""
    if uses_ring(ring, y_BTD.shard_BTD):
        return joined(y_BTD.pieces_BTD)
    return y_BTD.whole_BTD


def router_logits(y_BTD: Stream, kernel: Kernel) -> Array:
    """Logits [B, T, E] in float32, equal on all devices along `model`.

    The weight's D is sharded over `model` (`parallel/rules.py`): the product is a sum over it.
    """
    if uses_ring(kernel.ring is not None, y_BTD.shard_BTD) or axis_sizes().get("expert", 1) > 1:
        own_BTD = y_BTD.shard_BTD
    else:
        own_BTD = own_part(y_BTD.whole_BTD, "model", 2)  # see `Kernel.einsum`
    w_DE = gather_weight(kernel.shard, kernel.places, jnp.float32)
    wide_BTD = own_BTD.astype(jnp.float32)
    return total(jnp.einsum("BTD,DE->BTE", wide_BTD, w_DE, precision="highest"), "model")


class Routes(NamedTuple):
    """Which experts each token uses, and how its rows are sorted by expert."""

    experts_TJ: Array
    """int32. Of equal scores, that of the lowest index is selected."""
    weights_TJ: Array
    """float32: the factors of the experts' outputs."""
    sizes_E: Array
    """int32: rows of each expert; their sum is C."""
    order_C: Array
    """int32: the choice (token * J + number) at each row. Stable: an expert's tokens stay in
    order."""
    rows_TJ: Array
    """int32: the row of each choice; the inverse of `order_C`."""
    complete: bool = True
    """Whether every choice has a row. If not, the row of one that has none is C, and rows behind
    those of the experts have choices of no meaning."""


def choose(logits_TE: Array, bias_E: Array | None, config: ExpertsConfig) -> Routes:
    """Selects experts by logit, or by score plus bias; weights are the scores without bias."""
    scores_TE = scores(logits_TE, config)
    ranks_TE = logits_TE if bias_E is None else scores_TE + bias_E[None]
    _, experts_TJ = jax.lax.top_k(jax.lax.stop_gradient(ranks_TE), config.top_k)
    weights_TJ = jnp.take_along_axis(scores_TE, experts_TJ, axis=1)
    if config.renormalize:
        weights_TJ /= weights_TJ.sum(-1, keepdims=True) + SMALLEST_SUM
    order_C, rows_TJ = _sorted(experts_TJ)
    sizes_E = jnp.zeros(config.count, jnp.int32).at[experts_TJ.reshape(-1)].add(1)
    return Routes(experts_TJ, weights_TJ * config.scaling, sizes_E, order_C, rows_TJ)


def routes_of_part(experts_TJ: Array, weights_TJ: Array, first: Array | int, count: int) -> Routes:
    """The rows of `count` experts from `first` on, for all tokens that may use them.

    C is what they need at most: a token chooses no expert twice.
    """
    T, J = experts_TJ.shape
    C = T * min(J, count)
    own_TJ = experts_TJ - first
    is_own_TJ = (own_TJ >= 0) & (own_TJ < count)
    own_TJ = jnp.where(is_own_TJ, own_TJ, count)
    order, rows_TJ = _sorted(own_TJ)
    sizes_E = jnp.zeros(count, jnp.int32).at[own_TJ.reshape(-1)].add(1, mode="drop")
    rows_TJ = jnp.where(is_own_TJ, rows_TJ, C)
    return Routes(experts_TJ, weights_TJ, sizes_E, order[:C], rows_TJ, complete=False)


def _sorted(experts_TJ: Array) -> tuple[Array, Array]:
    """The choice at each row if choices are sorted by expert, and the row of each choice."""
    flat_C = experts_TJ.reshape(-1)
    order_C = jnp.argsort(flat_C, stable=True).astype(jnp.int32)
    places_C = jnp.arange(flat_C.size, dtype=jnp.int32)
    rows_C = jnp.zeros_like(places_C).at[order_C].set(places_C, unique_indices=True)
    return order_C, rows_C.reshape(experts_TJ.shape)


def scores(logits_TE: Array, config: ExpertsConfig) -> Array:
    return (jax.nn.softmax if config.scores == "softmax" else jax.nn.sigmoid)(logits_TE)


def statistics(
    logits_TE: Array, routes: Routes, own: Routes, config: ExpertsConfig
) -> dict[str, Array]:
    """Sums over this device's tokens, of which losses and metrics are made
    (`training/router_losses.py`). own: the rows of this device's experts (`expert_transport.py`).

    `rows`: those that they have room for, int32; over all devices, as many as choices.
    `load_E`: choices of each expert. `probability_E`: scores, divided by their sum over experts.
    `z`: log^2 sum exp of the logits. `entropy`: of the probabilities, in nats.
    """
    probabilities_TE = scores(logits_TE, config)
    if config.scores == "sigmoid":
        probabilities_TE /= probabilities_TE.sum(-1, keepdims=True) + SMALLEST_SUM
    return {
        "rows": jnp.minimum(own.sizes_E.sum(), own.order_C.size),
        "load_E": routes.sizes_E,
        "probability_E": probabilities_TE.sum(0),
        "z": jnp.square(jax.nn.logsumexp(logits_TE, axis=-1)).sum(),
        "entropy": jax.scipy.special.entr(jax.lax.stop_gradient(probabilities_TE)).sum(),
    }


# ---- rows ----------------------------------------------------------------------------------------
# Each of these three is the transpose of another or of itself, and all are gathers: the transpose
# that JAX derives would be a scatter-add, which is slower.


def to_rows(x_TD: Array, routes: Routes) -> Array:
    """The token of each row: x_CD."""
    return _to_rows(routes.complete, x_TD, routes.order_C, routes.rows_TJ)


def to_tokens(y_CD: Array, routes: Routes) -> Array:
    """The sum of each token's rows, in float32 and in the order of its choices: y_TD."""
    return _to_tokens(routes.complete, y_CD, routes.order_C, routes.rows_TJ)


_static = functools.partial(jax.custom_vjp, nondiff_argnums=(0,))


@_static
def _to_rows(complete: bool, x_TD: Array, order_C: Array, rows_TJ: Array) -> Array:
    return _rows(x_TD, order_C // rows_TJ.shape[1])


@_static
def _to_tokens(complete: bool, y_CD: Array, order_C: Array, rows_TJ: Array) -> Array:
    parts = [_rows(y_CD, rows_T, complete) for rows_T in rows_TJ.T]
    return functools.reduce(jnp.add, (part.astype(jnp.float32) for part in parts)).astype(
        y_CD.dtype
    )


_to_rows.defvjp(
    lambda complete, x, *routes: (_to_rows(complete, x, *routes), routes),
    lambda complete, routes, dx: (_to_tokens(complete, dx, *routes), None, None),
)
_to_tokens.defvjp(
    lambda complete, y, *routes: (_to_tokens(complete, y, *routes), routes),
    lambda complete, routes, dy: (_to_rows(complete, dy, *routes), None, None),
)


def weights_of_rows(routes: Routes) -> Array:
    """The weight of each row, weights_C."""
    return in_order_of_rows(routes.weights_TJ.reshape(-1), routes)


def in_order_of_rows(choices: Array, routes: Routes) -> Array:
    """What each choice (token * J + number) has, [T J, ...], sorted by expert: [C, ...]."""
    return _moved(routes.complete, choices, routes.order_C, routes.rows_TJ.reshape(-1))


def in_order_of_choices(rows: Array, routes: Routes) -> Array:
    """The inverse of `in_order_of_rows`: [T J, ...], zeros for a choice without a row."""
    return _moved(routes.complete, rows, routes.rows_TJ.reshape(-1), routes.order_C)


@_static
def _moved(complete: bool, x: Array, sources: Array, inverse: Array) -> Array:
    """x[sources]. A source behind the end is 0."""
    return _rows(x, sources, complete)


def _moved_back(complete: bool, kept: tuple, dy: Array) -> tuple:
    sources, inverse = kept
    return _moved(complete, dy, inverse, sources), None, None


_moved.defvjp(lambda complete, x, *kept: (_moved(complete, x, *kept), kept), _moved_back)


def _rows(x: Array, indices: Array, complete: bool = True) -> Array:
    if complete:
        return x.at[indices].get(mode="promise_in_bounds")
    return x.at[indices].get(mode="fill", fill_value=0)
