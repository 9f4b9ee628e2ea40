"""The key/value cache: what attention has computed so far, so that one more token costs one more token.

A cache holds keys and values of every layer as [L, B, S, K, H]: S is its length, K the key/value heads (one for multi-query
attention, which is why its cache is N times smaller than multi-head's). It lies as activations do: B over `pod` and `data`, K over
`model` where there are enough heads. `prefill` reads prompts whole and makes the cache; `decode` reads one token a row.

Rows are independent: row b has `lengths_B[b]` tokens, its next one is written at that place and sees only what is before. A prompt is
padded on the right; what the padding left in the cache is overwritten before any token may look at it.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paxlike.config import ModelConfig
from paxlike.models.palm import Decoder, bind
from paxlike.nn.attention import attend, attention
from paxlike.nn.einsum import gather, gather_weight, on_devices
from paxlike.nn.weight import Numerics
from paxlike.parallel.mesh import axis_sizes, spec, weight_spec

Array = jax.Array


class Cache(NamedTuple):
    """In the compute dtype. Keys are already turned by their positions."""

    k_LBSKH: Array
    v_LBSKH: Array


def prefill(
    config: ModelConfig, numerics: Numerics, params: dict, tokens_BT: Array, lengths_B: Array, cache_length: int
) -> tuple[Cache, Array]:
    """Reads whole prompts, causally. Returns the cache and the logits that follow each row's last token.

    tokens_BT: int32, row b's prompt in its first lengths_B[b] >= 1 places, any token after them; T <= cache_length.
    Logits: float32 [B, vocab_size], B over `pod` and `data`.
    """
    model = inference_decoder(config, numerics, params)
    T = tokens_BT.shape[1]
    positions_BT = jnp.arange(T, dtype=jnp.int32)[None]

    def mix(q_BTNH, k_BSKH, v_BSKH):
        return attention(q_BTNH, k_BSKH, v_BSKH, None, implementation=numerics.attention), (k_BSKH, v_BSKH)

    def layer(x_BTD, block):
        return block(x_BTD, positions_BT, mix)

    x_BTD, new = jax.lax.scan(layer, model.embed(tokens_BT), model.blocks)
    room = ((0, 0), (0, 0), (0, cache_length - T), (0, 0), (0, 0))
    cache = Cache(*(jnp.pad(x_LBSKH, room) for x_LBSKH in new))
    return cache, _logits(model, x_BTD, lengths_B - 1)


def decode(
    config: ModelConfig, numerics: Numerics, params: dict, cache: Cache, tokens_B: Array, lengths_B: Array
) -> tuple[Cache, Array]:
    """Reads one more token a row: tokens_B[b] at position lengths_B[b] of row b, which must be below the cache's length.

    Returns the cache with the token in it, and logits as `prefill` does. The work does not depend on lengths_B.
    """
    model = inference_decoder(config, numerics, params)
    positions_BT = lengths_B[:, None]

    def layer(x_BTD, block_and_cache):
        block, *kv_BSKH = block_and_cache
        return block(x_BTD, positions_BT, lambda q, k, v: (_over_cache(q, k, v, *kv_BSKH, lengths_B), (k, v)))

    x_BTD, new = jax.lax.scan(layer, model.embed(tokens_B[:, None]), (model.blocks, *cache))
    return _write(cache, new, lengths_B), _logits(model, x_BTD, jnp.zeros_like(lengths_B))


def inference_decoder(config: ModelConfig, numerics: Numerics, params: dict) -> Decoder:
    """The decoder; where it is quantized, a token's activations have a scale of their own (BitNet, arXiv 2310.11453, section 2.1)."""
    if config.quant.active:
        config = dataclasses.replace(config, quant=dataclasses.replace(config.quant, statistics="token"))
    return bind(config, numerics, params)


def _over_cache(q_BTNH, k_BTKH, v_BTKH, k_BSKH, v_BSKH, lengths_B):
    """Attention of one new token a row over its cache and itself."""
    heads, kv_heads = q_BTNH.shape[2], k_BSKH.shape[2]
    S, shards = k_BSKH.shape[1], axis_sizes()["model"]

    def device(q, k_new, v_new, k, v, lengths_B):
        if kv_heads < shards:
            mine = jax.lax.axis_index("model") * (heads // shards) // (heads // kv_heads)
            k_new, v_new, k, v = (jax.lax.dynamic_slice_in_dim(x, mine, 1, axis=2) for x in (k_new, v_new, k, v))
        places_BS = jnp.arange(S, dtype=jnp.int32)[None] - lengths_B[:, None]
        # A select, where the cache itself is updated by a scatter: it is part of reading the cache, not a copy of it.
        k, v = (jnp.where((places_BS == 0)[:, :, None, None], new, old) for new, old in ((k_new, k), (v_new, v)))
        return attend(q, k, v, (places_BS <= 0)[:, None])

    # T and S both lie whole, so that new and cached keys have one spec.
    q_spec, kv_spec = spec("BTNH", q_BTNH.shape), spec("BSKH", k_BSKH.shape)
    specs = (q_spec, kv_spec, kv_spec, kv_spec, kv_spec, P(q_spec[0]))
    return on_devices(device, specs, q_spec)(q_BTNH, k_BTKH, v_BTKH, k_BSKH, v_BSKH, lengths_B)


def _write(cache: Cache, new_LBTKH: tuple[Array, Array], lengths_B: Array) -> Cache:
    def device(cache, new, lengths_B):
        rows = jnp.arange(lengths_B.shape[0])
        return Cache(*(old.at[:, rows, lengths_B].set(x[:, :, 0]) for old, x in zip(cache, new, strict=True)))

    place = P(None, *spec("BSKH", cache.k_LBSKH.shape[1:]))
    places = Cache(place, place)
    return on_devices(device, (places, tuple(places), P(place[1])), places)(cache, new_LBTKH, lengths_B)


def _logits(model: Decoder, x_BTD: Array, places_B: Array) -> Array:
    """float32 logits [B, vocab_size] after the position places_B[b] of each row; rows of padding in the head are cut off."""
    x_BTD = model.finish(x_BTD)
    letters, weight, scale = model.head()
    x_spec, stored = spec("BTD", x_BTD.shape), weight_spec(letters, weight.shape)

    def device(x, places_B, weight):
        x_BD = gather(jnp.take_along_axis(x, places_B[:, None, None], axis=1)[:, 0], "model", 1)
        used = gather_weight(weight, tuple(stored), x.dtype)
        contracted = (((1,), (letters.index("D"),)), ((), ()))
        logits_BV = jax.lax.dot_general(x_BD, used, contracted, preferred_element_type=jnp.float32)
        return gather(logits_BV, "model", 1)[:, : model.config.vocab_size] * scale

    return on_devices(device, (x_spec, P(x_spec[0]), stored), P(x_spec[0], None))(x_BTD, places_B, weight)
