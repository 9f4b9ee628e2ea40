"""One set of parameters for a base and several of its adapters (`nn/rows.py`)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.adapt.prefix import flattened
from paxlike.adapt.spread import filled
from paxlike.architecture.lora import Factors, input_letters, lora_factors, lora_updates
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, ModelConfig, UserError
from paxlike.nn.numerics import Numerics
from paxlike.nn.prefix import NAME
from paxlike.nn.rows import RowFactors, RowPrefixes
from paxlike.parallel import rules
from paxlike.parallel.mesh import weight_spec

Array = np.ndarray


class Adapter(NamedTuple):
    name: str
    adapt: AdaptConfig
    trained: dict
    """As in a checkpoint, on the active mesh."""


def check_mixed(adapter: Adapter) -> None:
    """Raises UserError if rows with this adapter cannot be in a batch with others."""
    adapt = adapter.adapt
    if adapt.kind not in ("lora", "prefix") or adapt.train:
        what = f"adapt.train {' '.join(adapt.train)}" if adapt.train else f"adapt.kind {adapt.kind}"
        raise UserError(
            f"the adapter {adapter.name} has {what}; only LoRA and prefixes alone share a batch "
            "with others. Serve its run by itself (paxlike serve RUN)."
        )


def with_adapters(
    model: ModelConfig, numerics: Numerics, base: dict, adapters: list[Adapter]
) -> dict:
    """Parameters in which adapter n of a row (`with_rows`) is adapters[n - 1], and 0 the base."""
    params = dict(base)
    prefixes = [
        flattened(model, one.adapt, numerics, one.trained) if one.adapt.kind == "prefix" else {}
        for one in adapters
    ]
    for group, block, layers in groups(model):
        stacks = dict(base[group])
        for spec in block.weights(model):
            pairs = [_pair(model, one, group, spec.name) for one in adapters]
            if any(pair is not None for pair in pairs):
                stacks[spec.name] = _row_factors(model, spec, layers, stacks[spec.name], pairs)
        if any(prefixes):
            stacks[NAME] = _row_prefixes(model, layers, [p.get(group) for p in prefixes])
        params[group] = stacks
    return params


def _pair(model: ModelConfig, one: Adapter, group: str, name: str) -> tuple[Array, Array] | None:
    """A and B times the scale of one adapter, of all layers, on the host."""
    factors: Factors | None = lora_updates(model, one.adapt).get(group, {}).get(name)
    if factors is None:
        return None
    a, b = (filled(model, one.adapt, one.trained[group][spec.name]) for spec in factors)
    return _host(a), one.adapt.scale * _host(b)


def _row_factors(
    model: ModelConfig, spec, layers: int, base, pairs: list[tuple[Array, Array] | None]
) -> RowFactors:
    rank = max(pair[0].shape[-1] for pair in pairs if pair is not None)
    specs = lora_factors(spec, rank)
    a, b = (np.zeros((layers, 1 + len(pairs), *one.shape(model)), np.float32) for one in specs)
    for number, pair in enumerate(pairs, 1):
        if pair is not None:
            own = pair[0].shape[-1]
            a[:, number, ..., :own], b[:, number, :own] = pair
    of_base, inner = weight_spec(spec.letters, spec.shape(model)), input_letters(spec)
    places = [
        "model" if "model" in rules.axes_of(place) and letter != "D" else None
        for letter, place in zip(spec.letters, of_base, strict=True)
    ]
    return RowFactors(
        base,
        _put(a, P(None, None, *places[:inner], None)),
        _put(b, P(None, None, None, *places[inner:])),
        _put(np.zeros(1, np.int32), P()),
    )


def _row_prefixes(model: ModelConfig, layers: int, found: list) -> RowPrefixes:
    counts = np.array([0, *(0 if one is None else one.length for one in found)], np.int32)
    shape = (layers, len(counts), counts.max(), model.kv_heads, model.head_dim)
    k, v = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for number, one in enumerate(found, 1):
        if one is not None:
            k[:, number, : one.length], v[:, number, : one.length] = _host(one.k), _host(one.v)
    _, _, heads, head_dim = weight_spec("LQKH", (1, 1, *shape[3:]))
    place = P(None, None, None, heads, head_dim)
    rows = _put(np.zeros(1, np.int32), P())
    return RowPrefixes(_put(k, place), _put(v, place), _put(counts, P()), rows)


def _host(array: jax.Array) -> Array:
    """The whole array, in every process."""
    everywhere = jax.jit(lambda x: x, out_shardings=NamedSharding(jax.sharding.get_mesh(), P()))
    return np.asarray(everywhere(jnp.asarray(array)))


def _put(array: Array, place: P) -> jax.Array:
    return jax.device_put(array, NamedSharding(jax.sharding.get_mesh(), place))
