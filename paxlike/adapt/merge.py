"""A base and what was trained on it as one model: the update in the weights, or beside them."""

import jax
import jax.numpy as jnp

from paxlike.adapt.prefix import flattened
from paxlike.adapt.runs import runs
from paxlike.architecture.adapters import trained_whole
from paxlike.architecture.lora import lora_updates
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, Config, ModelConfig, UserError
from paxlike.nn.adapted import Adapted, update
from paxlike.nn.numerics import Numerics
from paxlike.nn.prefix import NAME

Array = jax.Array


def merged(model: ModelConfig, adapt: AdaptConfig, base: dict, trained: dict) -> dict:
    """Parameters of the base's layout that contain the adapter: W + s A B in float32, rounded once
    to W's dtype.

    base: all parameters. trained: as in a checkpoint. Raises UserError for a quantized model, whose
    weights the update would change by less than they are rounded by.
    """
    if adapt.kind == "prefix":
        raise UserError(
            "a prefix cannot be merged: it is keys and values, and no update of weights. Use the "
            "run as it is; generate, serve and evaluate read it."
        )
    if model.quant.active and adapt.kind != "none":
        raise UserError(
            f"the adapter cannot be merged: with model.quant.weights {model.quant.weights} the "
            "base multiplies quantized weights, and the sum of a latent weight and an update would "
            "be quantized anew, to another model. Use the run as it is; the adapter stays beside "
            "its base."
        )
    return _assembled(model, adapt, base, trained, beside=False)


def assembled(config: Config, numerics: Numerics, base: dict, trained: dict) -> dict:
    """What a decoder runs for inference: the adapter merged, or beside what it cannot be merged
    into: `Adapted` weights of a quantized model, a prefix."""
    model, adapt = config.model, config.adapt
    params = _assembled(model, adapt, base, trained, beside=model.quant.active)
    if adapt.kind == "prefix":
        for group, prefix in flattened(model, adapt, numerics, trained).items():
            params[group] = {**params[group], NAME: prefix}
    return params


def _assembled(model, adapt, base, trained, beside: bool) -> dict:
    updates, whole = lora_updates(model, adapt), trained_whole(model, adapt)
    params = {**base, **{name: value for name, value in trained.items() if name in whole}}
    for group, block, _ in groups(model):
        specs = {spec.name: spec for spec in block.weights(model)}
        stacks = dict(base[group])
        for name in stacks:
            if f"{group}/{name}" in whole and adapt.active:
                stacks[name] = _spread(model, adapt, trained[group][name], stacks[name])
        for name, (a, b) in updates.get(group, {}).items():
            first, second = (filled(model, adapt, trained[group][s.name]) for s in (a, b))
            if beside:
                stacks[name] = Adapted(
                    stacks[name], first, second, None, adapt.rank, adapt.scale, adapt.dropout
                )
                continue

            def add(base, a, b, spec=specs[name]):
                wide = base.astype(jnp.float32) + update(spec, a, b, adapt.scale)
                return wide.astype(base.dtype)

            out = base[group][name].sharding
            stacks[name] = jax.jit(add, out_shardings=out)(stacks[name], first, second)
        params[group] = stacks
    return params


def _spread(model: ModelConfig, adapt: AdaptConfig, chosen: Array, into: Array) -> Array:
    """The stack of the chosen layers in a stack of all layers."""
    segments = runs(model, adapt)
    if len(segments) == 1:
        return chosen
    at = 0
    for run in (run for run in segments if run.chosen):
        size = run.end - run.begin
        into = into.at[run.begin : run.end].set(chosen[at : at + size])
        at += size
    return into


def filled(model: ModelConfig, adapt: AdaptConfig, factor: Array) -> Array:
    """A factor of all layers, with zeros for those without an adapter."""
    if len(segments := runs(model, adapt)) == 1:
        return factor
    layers = segments[-1].end
    sharding = jax.typeof(factor).sharding.spec
    zeros = jnp.zeros((layers, *factor.shape[1:]), factor.dtype, out_sharding=sharding)
    return _spread(model, adapt, factor, zeros)
