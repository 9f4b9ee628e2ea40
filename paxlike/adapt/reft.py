"""ReFT (arXiv 2404.03592): initial interventions, those that a decoder runs, and orthonormal rows.

LoReFT starts from W = R and b = 0, DiReFT from W2 = 0 and b = 0, so that a new adapter changes no
bit. (The authors' code starts from a random W, which changes the model.)
"""

import functools

import jax
import jax.numpy as jnp

from paxlike.adapt.form import Draw
from paxlike.adapt.runs import trained_layers
from paxlike.adapt.spread import filled
from paxlike.architecture.reft import interventions
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, ModelConfig
from paxlike.nn.collectives import on_devices, total
from paxlike.nn.intervention import NAME, Interventions
from paxlike.nn.numerics import Numerics
from paxlike.parallel.mesh import weight_spec

Array = jax.Array


def initial(model: ModelConfig, adapt: AdaptConfig, seed: int) -> dict:
    """R is a random subspace (LoReFT); W1 is uniform in +-1/sqrt(inputs), as LoRA's A (DiReFT)."""
    key = jax.random.key(seed)
    found: dict = {}
    for place, (group, layers) in enumerate(trained_layers(model, adapt).items()):
        found[group] = {}
        own = layers, adapt.rank, model.d_model
        sharding = weight_spec("LRD", own)
        for number, names in enumerate(interventions(adapt)):
            draws = jax.random.fold_in(key, place * 1000 + number)
            if adapt.form == "loreft":
                normal = jax.random.normal(draws, own, jnp.float32, out_sharding=sharding)
                # Twice: a square matrix of random numbers is far from orthonormal.
                source = rotate = orthonormal(orthonormal(normal))
            else:
                uniform = jax.random.uniform(
                    draws, own, jnp.float32, -1.0, 1.0, out_sharding=sharding
                )
                source = uniform * model.d_model**-0.5
                rotate = jnp.zeros(own, jnp.float32, out_sharding=sharding)
            found[group] |= {
                names.source.name: source,
                names.rotate.name: rotate,
                names.bias.name: jnp.zeros(own[:2], jnp.float32),
            }
    return found


def wrap(
    model: ModelConfig,
    adapt: AdaptConfig,
    group: str,
    stacks: dict,
    outer: dict,
    draw: Draw | None,
) -> dict:
    """The interventions of a layer become one parameter of it."""
    all_ = interventions(adapt)
    own = {spec.name for names in all_ for spec in names}
    found = {name: stack for name, stack in stacks.items() if name not in own}
    parts = [tuple(stacks[spec.name] for spec in names) for names in all_]
    source, rotate, bias = (jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    down = source - rotate if adapt.form == "loreft" else source
    first, last = adapt.prompt_positions
    return {**found, NAME: Interventions(down, rotate, bias, first, last, len(all_) == 1)}


def merge(
    model: ModelConfig,
    adapt: AdaptConfig,
    numerics: Numerics | None,
    group: str,
    stacks: dict,
    trained: dict,
    derived: dict,
) -> dict:
    """The base's stacks, and the interventions beside them: 0 in layers without one."""
    own = {
        spec.name: filled(model, adapt, trained[group][spec.name])
        for names in interventions(adapt)
        for spec in names
    }
    return wrap(model, adapt, group, {**stacks, **own}, {}, None)


def beside(model: ModelConfig) -> str:
    return (
        "interventions on the residual stream cannot be merged: they are at positions of the "
        "prompt, and weights are the same at all"
    )


def constrain(model: ModelConfig, adapt: AdaptConfig, trained: dict) -> dict:
    """LoReFT's R with orthonormal rows again, after an update."""
    if adapt.form != "loreft":
        return trained
    names = [names.rotate.name for names in interventions(adapt)]
    new = {
        group: {**trained[group], **{name: orthonormal(trained[group][name]) for name in names}}
        for group, _, _ in groups(model)
    }
    return {**trained, **new}


def orthonormal(rows_LRD: Array) -> Array:
    """The nearest matrices with orthonormal rows, G^(-1/2) rows with G = rows rows^T, in float32.

    This polar projection treats all rows alike, and needs of the shards only the small matrix G, so
    that the result does not depend on the mesh.
    """
    places = weight_spec("LRD", rows_LRD.shape)
    times = functools.partial(jnp.matmul, precision="highest")

    def device(shard_LRD: Array) -> Array:
        gram = times(shard_LRD, shard_LRD.swapaxes(1, 2))
        values_LR, vectors = jnp.linalg.eigh(total(gram, ("data", "model")))
        root = times(vectors * jax.lax.rsqrt(values_LR)[:, None], vectors.swapaxes(1, 2))
        return times(root, shard_LRD)

    return on_devices(device, places, places)(rows_LRD)
