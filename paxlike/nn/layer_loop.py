"""The loop over layers, in which some weights are gathered one layer ahead.

Compilers do not move a collective from one iteration of a loop to another. So at the beginning of a
layer nothing can be multiplied before the first weight is gathered, and nothing hides the pieces of
the stream that travel meanwhile (`nn/ring.py`). Here the loop gathers that weight while the layer
before is computed: in the forward pass for the next layer, in the backward pass for the previous
one.

The last iteration gathers, too: each pass sends this weight once more than there are layers.
"""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal

from paxlike.nn.collectives import Stored, gather_weight
from paxlike.nn.differentiated import cotangents
from paxlike.nn.pullback import Pullback
from paxlike.parallel import rules

Array = jax.Array
Name = tuple[str, str]
"""A group of blocks and a weight of it."""
Params = dict[str, dict[str, Any]]
"""Group of blocks -> weight -> an array or a tree of arrays."""
Layer = Callable[[Array, Params], tuple[Array, Any]]
"""(x, parameters of one iteration) -> (x, a tree of arrays)."""


class Ahead(NamedTuple):
    """The weights that are gathered one layer ahead."""

    forward: tuple[Name, ...]
    """In the forward pass."""
    backward: tuple[Name, ...]
    """In the backward pass."""
    places: dict[Name, tuple[rules.Axis, ...]]
    """The mesh axes of the shards' dimensions."""
    dtype: str
    """In which they are gathered."""


def run_layers(layer: Layer, x: Array, stacks: Params, ahead: Ahead) -> tuple[Array, Any]:
    """(x after all layers; the second results of `layer`, stacked).

    stacks: parameters, layers first. Those that `ahead` names reach `layer` as `Stored`. As of
    `jax.lax.scan`, gradients need what `layer` saves for them, but no gathered weight is saved.
    """

    @jax.custom_vjp
    def run(x: Array, stacks: Params) -> tuple[Array, Any]:
        def step(x: Array, params: Params, gathered: dict[Name, Array]) -> tuple[Array, Any]:
            return layer(x, _with(gathered, params))

        return _forward_pass(step, x, stacks, ahead)

    def forward(x, stacks):
        def step(x: Array, params: Params, gathered: dict[Name, Array]) -> tuple[Array, Any]:
            def of_trained(x: Array, some: Params) -> tuple[tuple[Array, Any], Any]:
                x, found = layer(x, _with(gathered, _merged(some, params)))
                is_float = jax.tree.map(lambda y: jnp.issubdtype(y.dtype, jnp.floating), found)
                integers = _where(jax.tree.map(operator.not_, is_float), found)
                return (x, _where(is_float, found)), integers

            before, some = x, _where(trained, params)
            (x, floats), backward, integers = jax.vjp(of_trained, x, some, has_aux=True)
            kept = Pullback.of(backward, (before, params, gathered))
            return x, (_merged(floats, integers), before, kept)

        trained = jax.tree.map(lambda w: w.perturbed, stacks, is_leaf=_is_input)
        stacks = jax.tree.map(lambda w: w.value, stacks, is_leaf=_is_input)
        x, (found, before, kept) = _forward_pass(step, x.value, stacks, ahead)
        return (x, found), (stacks, before, kept)

    def backward(saved, dy):
        return _backward_pass(cotangents(dy), *saved, ahead)

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run(x, stacks)


def _forward_pass(step: Callable, x: Array, stacks: Params, ahead: Ahead) -> tuple[Array, Any]:
    layers = _length(stacks)

    def body(carry, of):
        (x, early), (number, params) = carry, of
        following = _gathered(ahead, ahead.forward, stacks, jnp.minimum(number + 1, layers - 1))
        late = _gathered(ahead, ahead.backward, stacks, number)
        x, found = step(x, params, {**early, **late})
        return (x, following), found

    start = x, _gathered(ahead, ahead.forward, stacks, 0)
    (x, _), found = jax.lax.scan(body, start, (jnp.arange(layers), stacks))
    return x, found


def _backward_pass(
    dy: tuple[Array, Any], stacks: Params, before: Array, kept: Pullback, ahead: Ahead
) -> tuple[Array, Params]:
    """before: x before each layer."""
    (dx, dfound), layers = dy, _length(stacks)

    def body(carry, of):
        (dx, early), (number, params, x, kept, dfound) = carry, of
        following = _gathered(ahead, ahead.backward, stacks, jnp.maximum(number - 1, 0))
        late = _gathered(ahead, ahead.forward, stacks, number)
        # What is computed again waits for these weights, so that x does not travel before dx.
        x, late = jax.lax.optimization_barrier((x, late))
        dx, gradients = kept.function((x, params, {**early, **late}))((dx, dfound))
        return (dx, following), gradients

    start = dx, _gathered(ahead, ahead.backward, stacks, layers - 1)
    of = jnp.arange(layers), stacks, before, kept, dfound
    (dx, _), gradients = jax.lax.scan(body, start, of, reverse=True)
    return dx, gradients


def _length(stacks: Params) -> int:
    return jax.tree.leaves(stacks)[0].shape[0]


def _gathered(
    ahead: Ahead, names: tuple[Name, ...], stacks: Params, layer: Array | int
) -> dict[Name, Array]:
    found = {}
    for name in names:
        stack = stacks[name[0]][name[1]]
        shard = jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)
        found[name] = gather_weight(shard, ahead.places[name], ahead.dtype)
    return found


def _with(gathered: dict[Name, Array], params: Params) -> Params:
    """The parameters of a layer, with the gathered weights beside their shards."""
    params = {group: dict(weights) for group, weights in params.items()}
    for (group, name), weight in gathered.items():
        params[group][name] = Stored(params[group][name], weight)
    return params


def _where(wanted: Any, tree: Any) -> Any:
    """The tree with None for the leaves that are not wanted. wanted: a tree of bools."""
    return jax.tree.map(lambda leaf, is_wanted: leaf if is_wanted else None, tree, wanted)


def _merged(tree: Any, others: Any) -> Any:
    """A tree, with leaves of another one of equal structure in place of None."""
    return jax.tree.map(
        lambda leaf, other: other if leaf is None else leaf, tree, others, is_leaf=_is_none
    )


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _is_input(leaf: Any) -> bool:
    return isinstance(leaf, CustomVJPPrimal)
