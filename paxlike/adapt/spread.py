"""Stacks of the chosen layers (`adapt.layers`), and stacks of all layers."""

import jax
import jax.numpy as jnp

from paxlike.adapt.runs import runs
from paxlike.config import AdaptConfig, ModelConfig

Array = jax.Array


def picked(model: ModelConfig, adapt: AdaptConfig, stack: Array) -> Array:
    """The chosen layers of a stack of all layers."""
    if len(segments := runs(model, adapt)) == 1:
        return stack
    parts = [stack[run.begin : run.end] for run in segments if run.chosen]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def spread(model: ModelConfig, adapt: AdaptConfig, chosen: Array, into: Array) -> Array:
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
    return spread(model, adapt, factor, zeros)
