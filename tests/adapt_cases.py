"""Adapted models on small meshes, from arrays on the host."""

import dataclasses

import jax
import jax.numpy as jnp
from helpers import device_batch, host_batch, mesh_of, model_config, numerics_of

from paxlike.accounting.hlo_collectives import Collective, list_collectives
from paxlike.adapt.parts import Parts, split
from paxlike.config import AdaptConfig, Config
from paxlike.nn.numerics import Numerics
from paxlike.training.state import abstract_state
from paxlike.training.step import DeviceBatch, Program, loss_gradients

SHAPE = {"kv_heads": 2, "block": "serial"}


def config_of(adapt: AdaptConfig, **shape) -> Config:
    return dataclasses.replace(model_config(**{**SHAPE, **shape}), adapt=adapt)


def parts_on_mesh(
    config: Config,
    numerics: Numerics,
    base: dict,
    factors: dict,
    group: str = "blocks",
    derived: dict | None = None,
) -> Parts:
    """All parameters on the active mesh. factors: the trained weights of an adapter by name;
    derived: what it computes from the base."""
    like = abstract_state(config, numerics, Program.of(config, numerics).optimizer)
    parts = split(config.model, config.adapt, base, derived)
    trained = {**parts.trained, group: {**parts.trained[group], **factors}}
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (like.params, like.frozen))
    return Parts(*jax.device_put((trained, parts.frozen), shardings))


def gradients_on(
    config: Config,
    sizes: tuple,
    base: dict,
    factors: dict,
    ring: bool = False,
    derived: dict | None = None,
    segments: bool = False,
):
    """(mean loss, gradients of the trained part) as a train step computes them.

    ring: in ring steps and with weights gathered ahead, as on TPUs.
    """
    numerics = dataclasses.replace(numerics_of(config), ring=ring, ahead=ring)
    steps = config.train.accumulate
    with jax.set_mesh(mesh_of(*sizes)):
        batch = host_batch(config, segments=segments)
        rows = [
            device_batch(type(batch)(*(None if x is None else x[i::steps] for x in batch)))
            for i in range(steps)
        ]
        stacked = DeviceBatch(
            *(None if x[0] is None else jnp.stack(x) for x in zip(*rows, strict=True))
        )
        parts = parts_on_mesh(config, numerics, base, factors, derived=derived)
        tokens = (stacked.targets_ABT >= 0).sum().astype(jnp.float32)
        run = jax.jit(lambda parts, batch: loss_gradients(config, numerics, parts, batch, tokens))
        gradients, losses = run(parts, stacked)
        return float(losses.loss / tokens), jax.device_get(gradients)


def layer_collectives(adapt: AdaptConfig, segments: bool = False) -> list[Collective]:
    """What a layer sends in the compiled train step on 2 x 4 devices."""
    config = config_of(adapt)
    numerics = numerics_of(config)
    with jax.set_mesh(mesh_of(1, 2, 4)):
        program = Program.of(config, numerics)
        batch = device_batch(host_batch(config, segments=segments))
        batch = DeviceBatch(*(None if x is None else x[None] for x in batch))
        state = abstract_state(config, numerics, program.optimizer)
        compiled = program.train_step.lower(state, batch).compile()
    found = list_collectives(compiled.as_text(), {"pod": 1, "data": 2, "model": 4})
    return [c for c in found if c.in_loop]
