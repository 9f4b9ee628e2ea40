"""Prefix-tuning (arXiv 2101.00190): initial values, and the prefix that a decoder runs."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paxlike.adapt.form import Draw
from paxlike.architecture.adapters import added_weights
from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.prefix import DIRECT, NETWORK, OUTPUT
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, ModelConfig
from paxlike.models.branch import Context
from paxlike.models.decoder import Decoder, sequence
from paxlike.nn.collectives import on_devices, specs_of
from paxlike.nn.numerics import Numerics
from paxlike.nn.prefix import NAME, PrefixNetwork, PrefixWeights
from paxlike.parallel.mesh import weight_spec

Array = jax.Array

DEVIATION = 0.02
"""Of random keys and values without a network: near zero, since large random ones train badly."""


def initial(model: ModelConfig, adapt: AdaptConfig, seed: int) -> dict:
    """Random values. The network's are those of the authors' code and PEFT: rows from N(0, 1),
    linear layers uniform in +-1/sqrt(inputs)."""
    added, key = added_weights(model, adapt), jax.random.key(seed)
    found: dict = {
        spec.name: _drawn(jax.random.fold_in(key, number), spec, model, adapt)
        for number, spec in enumerate(added.outer)
    }
    for place, (group, _, layers) in enumerate(groups(model)):
        keys = jax.random.fold_in(key, 1000 * (place + 1))
        found[group] = {
            spec.name: _drawn(jax.random.fold_in(keys, number), spec, model, adapt, layers)
            for number, spec in enumerate(added.layers[group])
        }
    return found


def _drawn(
    key: Array, spec: WeightSpec, model: ModelConfig, adapt: AdaptConfig, layers: int = 0
) -> Array:
    letters, shape = spec.letters, spec.shape(model)
    if layers:
        letters, shape = f"L{letters}", (layers, *shape)
    place = weight_spec(letters, shape)
    if spec.name in (*DIRECT, NETWORK[0]):
        draw = jax.random.normal(key, shape, jnp.float32, out_sharding=place)
        return draw * DEVIATION if spec.name in DIRECT else draw
    inputs = adapt.prefix_hidden if spec.name in OUTPUT else model.d_model
    draw = jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0, out_sharding=place)
    return draw * inputs**-0.5


def wrap(
    model: ModelConfig,
    adapt: AdaptConfig,
    group: str,
    stacks: dict,
    outer: dict,
    draw: Draw | None,
) -> dict:
    """The weights of the prefix become one parameter of the layers."""
    if not adapt.prefix_hidden:
        k, v = (stacks[name] for name in DIRECT)
        prefix: object = PrefixWeights(k, v, adapt.prefix_length)
    else:
        layers = {name: stacks[name] for name in OUTPUT}
        prefix = PrefixNetwork(outer, layers, adapt.prefix_length, adapt.prefix_hidden)
    others = {k: v for k, v in stacks.items() if k not in (*DIRECT, *OUTPUT)}
    return {**others, NAME: prefix}


def merge(
    model: ModelConfig,
    adapt: AdaptConfig,
    numerics: Numerics | None,
    group: str,
    stacks: dict,
    trained: dict,
    derived: dict,
) -> dict:
    """The base's stacks, and the keys and values of the prefix beside them."""
    assert numerics is not None
    return {**stacks, NAME: flattened(model, adapt, numerics, trained)[group]}


def beside(model: ModelConfig) -> str:
    return "a prefix cannot be merged: it is keys and values, and no update of weights"


def flattened(
    model: ModelConfig, adapt: AdaptConfig, numerics: Numerics, trained: dict
) -> dict[str, PrefixWeights]:
    """Group -> the keys and values of a trained prefix, in float32. Global arrays.

    trained: as in a checkpoint.
    """
    names = tuple(name for name, _, _ in groups(model))
    outer = {name: trained[name] for name in NETWORK if name in trained}
    mine = {
        group: {k: v for k, v in trained[group].items() if k in (*DIRECT, *OUTPUT)}
        for group in names
    }

    def device(outer: dict, mine: dict) -> dict:
        found = {}
        for group in names:
            prefix = wrap(model, adapt, group, mine[group], outer, None)[NAME]
            whole = prefix.whole(NAME, model, numerics, False)
            found[group] = whole.k_BQKH[:, 0], whole.v_BQKH[:, 0]
        return found

    kv = _kv_place(model, adapt)
    run = on_devices(device, (specs_of(outer), specs_of(mine)), dict.fromkeys(names, (kv, kv)))
    return {
        group: PrefixWeights(_stored(k), _stored(v), adapt.prefix_length)
        for group, (k, v) in jax.jit(run)(outer, mine).items()
    }


def of_text(model: ModelConfig, numerics: Numerics, base: dict, tokens: list[int]) -> dict:
    """Group -> the parameters of a prefix without network that has the effect of these tokens in
    front of every document: their keys and values in each layer, in float32.

    base: all parameters of the model, on the active mesh.
    """
    names = tuple(name for name, _, _ in groups(model))

    def device(base: dict, tokens_BT: Array) -> dict:
        positions_BT = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
        decoder = Decoder(model, numerics, base)
        context = Context(model, numerics, positions_BT)
        x_BTD = decoder.embed(tokens_BT, positions_BT)
        _, caches = decoder.run(x_BTD, sequence(context, keep_cache=True))
        found = {}
        for name, block, _ in groups(model):
            cache = next(c for b in block.branches if (c := caches[name][b.name]))
            found[name] = tuple(cache[x][:, 0].astype(jnp.float32) for x in ("k", "v"))
        return found

    kv = _kv_place(model, AdaptConfig("prefix", prefix_length=len(tokens), prefix_hidden=0))
    run = on_devices(device, (specs_of(base), P(None, None)), dict.fromkeys(names, (kv, kv)))
    found = jax.jit(run)(base, jnp.asarray([tokens], jnp.int32))
    return {
        group: dict(zip(DIRECT, map(_stored, pair), strict=True)) for group, pair in found.items()
    }


def _kv_place(model: ModelConfig, adapt: AdaptConfig) -> P:
    """Keys or values of a prefix, whole but for their heads."""
    shape = (1, adapt.prefix_length, model.kv_heads, model.head_dim)
    *_, heads, head_dim = weight_spec("LQKH", shape)
    return P(None, None, heads, head_dim)


def _stored(x_LQKH: Array) -> Array:
    """Sharded as parameters are."""
    return jax.sharding.reshard(x_LQKH, weight_spec("LQKH", x_LQKH.shape))
