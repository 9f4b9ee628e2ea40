"""The trained and the frozen part of a model's parameters, and the whole that the decoder runs.

Without `config.adapt` everything is trained. Otherwise the state holds the trained part, of which
there are gradients, moments and checkpoints, apart from the frozen part.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from paxlike.adapt.form import Draw
from paxlike.adapt.forms import FORMS
from paxlike.adapt.runs import runs
from paxlike.architecture.adapters import added_weights, trained_whole
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, ModelConfig

Array = jax.Array


class Parts(NamedTuple):
    """Parameters in two nested dicts. Trained stacks have the chosen layers only."""

    trained: dict
    frozen: dict
    """A group of blocks is a list of dicts: the stacks of each run of layers (`runs`)."""


def split(
    model: ModelConfig, adapt: AdaptConfig, params: dict, derived: dict | None = None
) -> Parts:
    """Divides a base's parameters. Adapters are not among them; see `with_adapter`.

    derived: arrays for the frozen part that are computed from the base (`adapt/derived.py`).
    """
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
        at, own = 0, (derived or {}).get(group, {})
        for run, stacks in zip(segments, frozen[group], strict=True):
            if run.chosen:
                here = slice(at, at := at + run.end - run.begin)
                stacks |= own if len(segments) == 1 else {k: v[here] for k, v in own.items()}
    return Parts(trained, frozen)


def join(model: ModelConfig, adapt: AdaptConfig, parts: Parts, draw: Draw | None = None) -> dict:
    """The parameters that the decoder runs, in which the adapter has its form (`adapt/forms.py`). A
    group of blocks with several runs of layers is a list of dicts.

    draw: of dropout; None: there is none.
    """
    if not adapt.active:
        return parts.trained
    form, segments = FORMS[adapt.kind], runs(model, adapt)
    outer = {spec.name for spec in added_weights(model, adapt).outer}
    params = {k: v for k, v in {**parts.frozen, **parts.trained}.items() if k not in outer}
    own = {k: v for k, v in parts.trained.items() if k in outer}
    for group, _, _ in groups(model):
        trained, at, found = parts.trained[group], 0, []
        for run, frozen in zip(segments, parts.frozen[group], strict=True):
            if not run.chosen:
                found.append(frozen)
                continue
            here = slice(at, at := at + run.end - run.begin)
            mine = trained if len(segments) == 1 else {k: v[here] for k, v in trained.items()}
            found.append(form.wrap(model, adapt, group, {**frozen, **mine}, own, draw))
        params[group] = found[0] if len(found) == 1 else found
    return params


def with_adapter(model: ModelConfig, adapt: AdaptConfig, trained: dict, seed: int) -> dict:
    """The trained part of a base with the initial weights of its adapter, in float32.

    Call it inside `jax.jit` with an active mesh: weights are created sharded. Equal on every mesh.
    """
    found = FORMS[adapt.kind].initial(model, adapt, seed)
    stacks = {group: {**trained[group], **found.pop(group, {})} for group, _, _ in groups(model)}
    return {**trained, **found, **stacks}


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)
