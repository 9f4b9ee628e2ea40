"""The trained and the frozen part of a model's parameters, and the whole that the decoder runs.

Without `config.adapt` everything is trained. Otherwise the state holds the trained part, of which
there are gradients, moments and checkpoints, apart from the frozen part.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paxlike.architecture.adapters import Factors, adapted, trained_whole
from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, ConfigError, ModelConfig
from paxlike.nn.adapted import Adapted
from paxlike.nn.collectives import Leaf
from paxlike.nn.dropout import Noise, noise_key
from paxlike.parallel.mesh import weight_spec

Array = jax.Array


class Parts(NamedTuple):
    """Parameters in two nested dicts. Trained stacks have the chosen layers only."""

    trained: dict
    frozen: dict
    """A group of blocks is a list of dicts: the stacks of each run of layers (`runs`)."""


class Draw(NamedTuple):
    """What dropout of one accumulation step is drawn from; or the PartitionSpecs."""

    step: Leaf
    """int32: completed updates."""
    first_row: Leaf
    """The first row of the accumulation step in the batch."""


class Run(NamedTuple):
    """Consecutive periods of the stack, all of them chosen or none."""

    begin: int
    end: int
    chosen: bool


def runs(model: ModelConfig, adapt: AdaptConfig) -> tuple[Run, ...]:
    """The runs of periods, in order. Raises ConfigError for `adapt.layers` that do not exist, or
    are not whole periods of the pattern."""
    period = len(model.block_kinds)
    count = model.layers // period
    if not adapt.layers:
        return (Run(0, count, True),)
    chosen = set(adapt.layers)
    if model.layers % period:
        raise ConfigError(
            f"adapt.layers is {' '.join(map(str, adapt.layers))}, but model.layers {model.layers} "
            f"is not a multiple of the {period} blocks of model.pattern; adapt all layers."
        )
    if unknown := sorted(layer for layer in chosen if not 0 <= layer < model.layers):
        raise ConfigError(
            f"adapt.layers has {unknown[0]}; the model has layers 0 to {model.layers - 1}."
        )
    marks = []
    for start in range(0, model.layers, period):
        inside = [layer in chosen for layer in range(start, start + period)]
        if any(inside) and not all(inside):
            raise ConfigError(
                f"adapt.layers has {start + inside.index(True)}, but not all of layers {start} to "
                f"{start + period - 1}, which are one period of model.pattern; give whole periods."
            )
        marks.append(inside[0])
    found: list[Run] = []
    for place, mark in enumerate(marks):
        if found and found[-1].chosen == mark:
            found[-1] = found[-1]._replace(end=place + 1)
        else:
            found.append(Run(place, place + 1, mark))
    return tuple(found)


def split(model: ModelConfig, adapt: AdaptConfig, params: dict) -> Parts:
    """Divides a base's parameters. Adapters are not among them; see `initial_factors`."""
    if not adapt.active:
        return Parts(params, {})
    whole, segments = trained_whole(model, adapt), runs(model, adapt)
    names = [name for name, _, _ in groups(model)]
    trained = {k: v for k, v in params.items() if k in whole}
    frozen = {k: v for k, v in params.items() if k not in names and k not in whole}
    for group in names:
        stacks = params[group]
        mine = [name for name in stacks if f"{group}/{name}" in whole]
        trained[group] = {
            name: _joined([stacks[name][r.begin : r.end] for r in segments if r.chosen])
            if len(segments) > 1
            else stacks[name]
            for name in mine
        }
        frozen[group] = [
            {
                name: stack if len(segments) == 1 else stack[run.begin : run.end]
                for name, stack in stacks.items()
                if not (run.chosen and name in mine)
            }
            for run in segments
        ]
    return Parts(trained, frozen)


def join(
    model: ModelConfig, adapt: AdaptConfig, parts: Parts, seed: int = 0, draw: Draw | None = None
) -> dict:
    """The parameters that the decoder runs: an adapted weight is an `Adapted`, and a group of
    blocks with several runs of layers a list of dicts.

    seed, draw: of dropout; without `draw` there is none.
    """
    if not adapt.active:
        return parts.trained
    updates, segments = adapted(model, adapt), runs(model, adapt)
    params = {**parts.frozen, **parts.trained}
    for group, _, _ in groups(model):
        trained, at, found = parts.trained[group], 0, []
        for run, frozen in zip(segments, parts.frozen[group], strict=True):
            if not run.chosen:
                found.append(frozen)
                continue
            here = slice(at, at := at + run.end - run.begin)
            mine = trained if len(segments) == 1 else {k: v[here] for k, v in trained.items()}
            wrap = functools.partial(_adapted, adapt, seed=seed, draw=draw)
            found.append(_wrapped(updates.get(group, {}), {**frozen, **mine}, wrap))
        params[group] = found[0] if len(found) == 1 else found
    return params


def _wrapped(updates: dict[str, Factors], stacks: dict, wrap) -> dict:
    """A run's stacks, in which a weight and its factors are one `Adapted`."""
    factors = {spec.name for pair in updates.values() for spec in pair}
    found = {name: stack for name, stack in stacks.items() if name not in factors}
    for number, (name, pair) in enumerate(updates.items()):
        found[name] = wrap(stacks[name], stacks[pair.a.name], stacks[pair.b.name], number)
    return found


def _adapted(
    adapt: AdaptConfig, base: Array, a: Array, b: Array, number: int, seed: int, draw: Draw | None
) -> Adapted:
    noise = None
    if draw is not None and adapt.dropout:
        layers = a.shape[0]
        rows = jnp.broadcast_to(draw.first_row.astype(jnp.uint32), (layers,))
        noise = Noise(noise_key(seed, draw.step, number, layers), rows)
    return Adapted(base, a, b, noise, adapt.rank, adapt.scale, adapt.dropout)


def initial_factors(model: ModelConfig, adapt: AdaptConfig, seed: int) -> dict:
    """Group -> name -> initial stacked factor in float32, created sharded.

    A is uniform in +-1/sqrt(inputs), as in the authors' code (loralib) and PEFT; B is 0, so that
    the update is 0. Call it inside `jax.jit` with an active mesh. Equal on every mesh.
    """
    chosen = sum(run.end - run.begin for run in runs(model, adapt) if run.chosen)
    key = jax.random.key(seed)
    found: dict = {}
    for place, (group, updates) in enumerate(adapted(model, adapt).items()):
        found[group] = {}
        for number, (a, b) in enumerate(updates.values()):
            draws = jax.random.fold_in(key, place * 1000 + number)
            found[group][a.name] = _uniform(draws, a, model, chosen)
            shape = (chosen, *b.shape(model))
            place_b = weight_spec(f"L{b.letters}", shape)
            found[group][b.name] = jnp.zeros(shape, jnp.float32, out_sharding=place_b)
    return found


def with_factors(model: ModelConfig, adapt: AdaptConfig, trained: dict, seed: int) -> dict:
    """The trained part of a base with the initial factors of its adapter."""
    if adapt.kind == "none":
        return trained
    factors = initial_factors(model, adapt, seed)
    return {**trained, **{group: {**trained[group], **found} for group, found in factors.items()}}


def _uniform(key: Array, spec: WeightSpec, model: ModelConfig, layers: int) -> Array:
    shape = (layers, *spec.shape(model))
    inputs = 1
    for size in shape[1:-1]:
        inputs *= size
    place = weight_spec(f"L{spec.letters}", shape)
    draw = jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0, out_sharding=place)
    return draw * inputs**-0.5


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)
