"""Layer pruning: which consecutive layers to drop, and the model without them.

Gromov et al., arXiv 2403.17887: to drop n layers, choose the n consecutive ones across which the
residual stream changes its direction least. Layers are counted from 0.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paxlike.architecture.stack import groups, layer_places
from paxlike.config import ModelConfig, UserError
from paxlike.nn.collectives import total

Array = jax.Array


class Drop(NamedTuple):
    """Consecutive layers."""

    start: int
    layers: int
    distance: float
    """Angular distance between the input of the first and the output of the last."""

    @property
    def name(self) -> str:
        """Such as `layers 3 to 5`."""
        if self.layers == 1:
            return f"layer {self.start}"
        return f"layers {self.start} to {self.start + self.layers - 1}"


def angular_distances(streams: Array) -> Array:
    """d(x, y) = arccos(x y / (|x| |y|)) / pi of all pairs (eq. 7): float32 [X, X, B], in [0, 1].

    streams: [X, B, D], D sharded over `model`. Computed as 2 atan2(|u - v|, |u + v|) / pi of the
    unit vectors u and v in float32: exactly 0 for equal vectors and 1 for opposite ones, where
    arccos would be wrong by 1e-4. A zero vector has distance 1/2 to all others.
    """

    def unit(x_BD: Array) -> Array:
        wide_BD = x_BD.astype(jnp.float32)
        power_B1 = total(jnp.square(wide_BD).sum(-1, keepdims=True), "model")
        return wide_BD / jnp.sqrt(jnp.maximum(power_B1, jnp.finfo(jnp.float32).tiny))

    # One vector at a time runs the same instructions for each, so that equal ones stay equal.
    units = jax.lax.map(unit, streams)

    def length(x: Array) -> Array:
        return jnp.sqrt(total(jnp.square(x).sum(-1), "model"))

    def from_one(unit_BD: Array) -> Array:
        apart, along = length(units - unit_BD[None]), length(units + unit_BD[None])
        return jnp.arctan2(apart, along) / np.float32(np.pi / 2)

    return jax.lax.map(from_one, units)


def possible_starts(model: ModelConfig, layers: int) -> list[int]:
    """The first layers of `layers` layers without which the others still repeat `model.pattern`;
    with one kind of block, any."""
    kinds = [model.block_kinds[i % len(model.block_kinds)] for i in range(model.layers)]
    kept = model.layers - layers
    if kept < len(model.block_kinds):
        return []
    return [s for s in range(kept + 1) if kinds[:s] + kinds[s + layers :] == kinds[:kept]]


def possible_drops(model: ModelConfig, distances: np.ndarray) -> list[list[Drop]]:
    """All that can be dropped, by number of layers from 1 on.

    distances: [L + 1, L + 1], between the inputs of two layers; index L is the last one's output.
    """
    return [
        [Drop(s, n, float(distances[s, s + n])) for s in possible_starts(model, n)]
        for n in range(1, model.layers - len(model.block_kinds) + 1)
    ]


def best(drops: list[Drop]) -> Drop:
    """The one with the smallest distance, of equal ones the first."""
    return min(drops, key=lambda drop: drop.distance)


def simple_start(model: ModelConfig, layers: int) -> int:
    """The first of the deepest layers but the very last: the paper's simple strategy."""
    return model.layers - 1 - layers


def check_layers(model: ModelConfig, layers: int | None, simple: bool) -> None:
    """Raises UserError if no such layers can be dropped. layers: None is any number."""
    period, most = len(model.block_kinds), model.layers - len(model.block_kinds)
    left = "one layer" if period == 1 else f"the {period} blocks of model.pattern"
    if most < 1:
        raise UserError(f"model.layers is {model.layers}; none can be dropped: {left} must remain.")
    if layers is None:
        return
    if not 1 <= layers <= most:
        raise UserError(
            f"--layers is {layers}; 1 to {most} of the model's {model.layers} layers can be "
            f"dropped: {left} must remain."
        )
    if simple and simple_start(model, layers) not in possible_starts(model, layers):
        raise UserError(
            f"--layers is {layers}: without the deepest {layers} layers but the very last, the "
            f"model does not repeat its pattern {' '.join(model.block_kinds)}. Choose a multiple "
            f"of {period}, or leave out --simple."
        )


def pruned_model(model: ModelConfig, drop: Drop) -> ModelConfig:
    return dataclasses.replace(model, layers=model.layers - drop.layers)


def pruned_params(model: ModelConfig, params: dict, drop: Drop) -> dict:
    """The parameters without the dropped layers, in the layout of the pruned model. NumPy arrays,
    here and there: with a pattern, a layer can move to another stack.
    """
    pruned = pruned_model(model, drop)
    kept = [
        place
        for layer, place in enumerate(layer_places(model))
        if not drop.start <= layer < drop.start + drop.layers
    ]
    sources: dict[str, list[dict]] = {}
    for (new, _), (old, index) in zip(layer_places(pruned), kept, strict=True):
        layer = {name: stack[index] for name, stack in params[old.name].items()}
        sources.setdefault(new.name, []).append(layer)
    stacks = {
        group: {name: np.stack([layer[name] for layer in layers]) for name in layers[0]}
        for group, layers in sources.items()
    }
    old_groups = {group.name for group in groups(model)}
    return {**{name: x for name, x in params.items() if name not in old_groups}, **stacks}
