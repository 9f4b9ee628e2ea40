"""LoRA (arXiv 2106.09685): initial factors, and a weight and its factors as one `Adapted`."""

import jax
import jax.numpy as jnp

from paxlike.adapt.form import Draw
from paxlike.adapt.runs import trained_layers
from paxlike.adapt.spread import filled
from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.lora import lora_updates
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, ModelConfig
from paxlike.nn.adapted import Adapted, update
from paxlike.nn.dropout import Noise, noise_key
from paxlike.nn.numerics import Numerics
from paxlike.parallel.mesh import weight_spec

Array = jax.Array


def initial(model: ModelConfig, adapt: AdaptConfig, seed: int) -> dict:
    """A is uniform in +-1/sqrt(inputs), as in the authors' code (loralib) and PEFT; B is 0, so that
    the update is 0."""
    layers = trained_layers(model, adapt)
    key = jax.random.key(seed)
    found: dict = {}
    for place, (group, updates) in enumerate(lora_updates(model, adapt).items()):
        found[group] = {}
        for number, (a, b) in enumerate(updates.values()):
            draws = jax.random.fold_in(key, place * 1000 + number)
            found[group][a.name] = _uniform(draws, a, model, layers[group])
            shape = (layers[group], *b.shape(model))
            place_b = weight_spec(f"L{b.letters}", shape)
            found[group][b.name] = jnp.zeros(shape, jnp.float32, out_sharding=place_b)
    return found


def wrap(
    model: ModelConfig,
    adapt: AdaptConfig,
    group: str,
    stacks: dict,
    outer: dict,
    draw: Draw | None,
) -> dict:
    """The factors of a weight go into one `Adapted` with it."""
    updates = lora_updates(model, adapt).get(group, {})
    factors = {spec.name for pair in updates.values() for spec in pair}
    found = {name: stack for name, stack in stacks.items() if name not in factors}
    for number, (name, pair) in enumerate(updates.items()):
        a, b = stacks[pair.a.name], stacks[pair.b.name]
        noise = None
        if draw is not None and adapt.dropout:
            layers = a.shape[0]
            rows = jnp.broadcast_to(draw.first_row.astype(jnp.uint32), (layers,))
            noise = Noise(noise_key(draw.seed, draw.step, number, layers), rows)
        found[name] = Adapted(stacks[name], a, b, noise, adapt.rank, adapt.scale, adapt.dropout)
    return found


def merge(
    model: ModelConfig,
    adapt: AdaptConfig,
    numerics: Numerics | None,
    group: str,
    stacks: dict,
    trained: dict,
    derived: dict,
) -> dict:
    """W + s A B in float32, rounded once; beside quantized weights as one `Adapted` with them."""
    found = dict(stacks)
    specs = {spec.name: spec for _, block, _ in groups(model) for spec in block.weights(model)}
    for name, (a, b) in lora_updates(model, adapt)[group].items():
        first, second = (filled(model, adapt, trained[group][s.name]) for s in (a, b))
        if beside(model):
            found[name] = Adapted(
                stacks[name], first, second, None, adapt.rank, adapt.scale, adapt.dropout
            )
            continue

        def add(base, a, b, spec=specs[name]):
            wide = base.astype(jnp.float32) + update(spec, a, b, adapt.scale)
            return wide.astype(base.dtype)

        out = stacks[name].sharding
        found[name] = jax.jit(add, out_shardings=out)(stacks[name], first, second)
    return found


def beside(model: ModelConfig) -> str:
    if not model.quant.active:
        return ""
    return (
        f"the adapter cannot be merged: with model.quant.weights {model.quant.weights} the base "
        "multiplies quantized weights, and the sum of a latent weight and an update would be "
        "quantized anew, to another model"
    )


def _uniform(key: Array, spec: WeightSpec, model: ModelConfig, layers: int) -> Array:
    shape = (layers, *spec.shape(model))
    inputs = 1
    for size in shape[1:-1]:
        inputs *= size
    place = weight_spec(f"L{spec.letters}", shape)
    draw = jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0, out_sharding=place)
    return draw * inputs**-0.5
