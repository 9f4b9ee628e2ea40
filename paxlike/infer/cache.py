"""The generation cache: what each branch saves of earlier tokens, so that each step reads one
token.

Each branch declares what it caches (`architecture/`). Attention caches keys and values as [L, B, S,
K, H]. S is the cache's length and K the number of key/value heads (one for multi-query attention,
whose cache is N times smaller than multi-head's). Caches are sharded like activations: B over `pod`
and `data`, and K over `model` if there are enough heads. `prefill` reads whole prompts and creates
the cache; `decode` reads one token per row.

A branch with a window caches the newest W tokens only: position p is at place p modulo W. A routed
block caches the tokens that went through it, in O places (`architecture/depths.py`), and their
number.

Rows are independent. Row b has `lengths_B[b]` tokens; its next token is written at that position
and attends only to earlier ones. A prompt is padded on the right. What padding writes into the
cache is overwritten before any token can attend to it.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paxlike.architecture import depths
from paxlike.architecture.stack import groups
from paxlike.config import ModelConfig
from paxlike.models.branch import Context
from paxlike.models.decoder import Caches, Decoder, sequence, token
from paxlike.nn.attention import capped
from paxlike.nn.collectives import gather, gather_weight, on_devices, specs_of
from paxlike.nn.intervention import row_prompts
from paxlike.nn.numerics import Numerics
from paxlike.nn.prefix import prefix_lengths
from paxlike.parallel.axes import sizes
from paxlike.parallel.mesh import spec

Array = jax.Array


def cache_specs(config: ModelConfig, batch: int) -> dict:
    """Returns the PartitionSpec of each array of the caches on the active mesh."""
    size = {**sizes(config), "B": batch, "S": 1, "W": 1, "O": 1}

    def places(letters: str) -> P:
        return P(None, *spec(letters, [size[letter] for letter in letters]))

    return {
        group: {
            branch: {name: places(dims) for name, dims in arrays.items()}
            for branch, arrays in block.caches(config).items()
        }
        for group, block, _ in groups(config)
    }


def prefill(
    config: ModelConfig,
    numerics: Numerics,
    params: dict,
    tokens_BT: Array,
    lengths_B: Array,
    cache_length: int,
) -> tuple[Caches, Array]:
    """Reads whole prompts, causally. Returns the caches and the logits after each prompt's end.

    tokens_BT: int32; row b's prompt is its first lengths_B[b] >= 1 positions, and any tokens may
    follow. T and a prefix together are at most cache_length. Logits: float32 [B, vocab_size], B
    sharded over `pod` and `data`. A cache begins with the row's prefix, if there is one
    (`cached_lengths`).
    """
    B, T = tokens_BT.shape

    def device(params, tokens_BT, lengths_B):
        model = inference_decoder(config, numerics, params)
        positions_BT = jnp.arange(T, dtype=jnp.int32)[None]
        before = prefix_lengths(params)
        if before is not None:
            positions_BT += before
        routed_places = depths.places(config, cache_length) if config.routed else 0
        context = Context(
            model.config, numerics, positions_BT, lengths_B=lengths_B, by_predictor=True,
            routed_places=routed_places,
        )  # fmt: skip
        x_BTD = model.embed(tokens_BT, positions_BT)
        prompts = row_prompts(*tokens_BT.shape, lengths_B)
        x_BTD, new = model.run(x_BTD, sequence(context, keep_cache=True), prompts=prompts)

        def stored(dims: str, group: str, x: Array) -> Array:
            if "O" in dims:
                return _padded(dims, x[:, :, :routed_places], routed_places)
            window = min(config.sliding_window, cache_length)
            length = window if "W" in dims else cache_length
            if before is not None and has_tokens(dims):
                return _stored_after(before, x, lengths_B, length, T)
            return _stored(dims, x, lengths_B, length)

        caches = _each_array(config, stored, new)
        return caches, _logits(model, x_BTD, lengths_B - 1)

    rows = spec("B", (B,))
    in_specs = specs_of(params), spec("BT", (B, T)), rows
    out_specs = cache_specs(config, B), P(rows[0], None)
    return on_devices(device, in_specs, out_specs)(params, tokens_BT, lengths_B)


def decode(
    config: ModelConfig,
    numerics: Numerics,
    params: dict,
    caches: Caches,
    tokens_B: Array,
    lengths_B: Array,
) -> tuple[Caches, Array]:
    """Reads one more token per row: tokens_B[b] at position lengths_B[b] of row b.

    The position must be below the cache's length. Returns the updated caches, and logits as
    `prefill` does. The cost does not depend on lengths_B.
    """

    def device(params, caches, tokens_B, lengths_B):
        model = inference_decoder(config, numerics, params)
        context = Context(model.config, numerics, lengths_B[:, None])
        x_BTD = model.embed(tokens_B[:, None], lengths_B[:, None])
        x_BTD, found = model.run(x_BTD, token(context), caches)

        def replace(dims: str, group: str, old: Array, new: Array) -> Array:
            if "O" in dims:
                return _with_routed(old, new, caches[group][depths.NAME]["count"])
            return _updated(dims, old, new, lengths_B)

        updated = _each_array(config, replace, caches, found)
        return updated, _logits(model, x_BTD, jnp.zeros_like(lengths_B))

    rows, specs = spec("B", tokens_B.shape), cache_specs(config, tokens_B.shape[0])
    in_specs = specs_of(params), specs, rows, rows
    run = on_devices(device, in_specs, (specs, P(rows[0], None)))
    return run(params, caches, tokens_B, lengths_B)


def inference_decoder(config: ModelConfig, numerics: Numerics, params: dict) -> Decoder:
    """Returns one device's decoder for inference, without rematerialization. The predictor decides
    which tokens a routed block takes.

    In a quantized model each token has its own activation scale (BitNet, arXiv 2310.11453,
    section 2.1).
    """
    config = dataclasses.replace(config, remat="none")
    if config.quant.active:
        quant = dataclasses.replace(config.quant, statistics="token")
        config = dataclasses.replace(config, quant=quant)
    return Decoder(config, numerics, params, by_predictor=True)


def _each_array(config: ModelConfig, function, *caches: Caches) -> Caches:
    """Applies function(letters, group, one array of each of the caches) to every array."""
    return {
        group: {
            branch: {
                name: function(dims, group, *(c[group][branch][name] for c in caches))
                for name, dims in arrays.items()
            }
            for branch, arrays in block.caches(config).items()
        }
        for group, block, _ in groups(config)
    }


def has_tokens(dims: str) -> bool:
    """Whether an array of a cache has places of tokens: all (S), of a window (W), or routed (O)."""
    return any(letter in dims for letter in "SWO")


def _stored(dims: str, x: Array, lengths_B: Array, length: int) -> Array:
    """Lays out what a prompt adds to the cache, stacked by layer, over `length` places of tokens.

    Position p is at place p modulo `length`, and later positions replace earlier ones.
    """
    if not has_tokens(dims) or x.shape[2] <= length:
        return _padded(dims, x, length)
    newest_B1 = lengths_B[:, None] - 1
    positions_BS = newest_B1 - (newest_B1 - jnp.arange(length, dtype=jnp.int32)[None]) % length
    # Places without a position read position 0, and no token attends to them.
    positions_BS = jnp.maximum(positions_BS, 0)
    return jnp.take_along_axis(x, positions_BS[None, :, :, None, None], axis=2)


def _stored_after(
    before: Array | int, x: Array, lengths_B: Array, length: int, tokens: int
) -> Array:
    """`_stored` of x [L, B, Q + T, ...], a prefix and T tokens: row b has the first before[b] of
    Q positions, and its tokens follow them directly."""
    Q, before_B1 = x.shape[2] - tokens, jnp.reshape(before, (-1, 1))
    newest_B1 = lengths_B[:, None] + before_B1 - 1
    places_S = jnp.arange(length, dtype=jnp.int32)[None]
    positions_BS = jnp.maximum(newest_B1 - (newest_B1 - places_S) % length, 0)
    where_BS = positions_BS + jnp.where(positions_BS < before_B1, 0, Q - before_B1)
    return jnp.take_along_axis(x, where_BS[None, :, :, None, None], axis=2)


def cached_lengths(params: dict, lengths_B: Array) -> Array:
    """The number of positions that a cache has of each row: those of a prefix and of the tokens."""
    before = prefix_lengths(params)
    return lengths_B if before is None else lengths_B + jnp.reshape(before, (-1,))


def _padded(dims: str, x: Array, length: int) -> Array:
    """Pads an array, stacked by layer, to `length` places of tokens."""
    padding = [(0, 0)] + [
        (0, length - n if has_tokens(d) else 0) for d, n in zip(dims, x.shape[1:], strict=True)
    ]
    return jnp.pad(x, padding)


def _updated(dims: str, old: Array, new: Array, lengths_B: Array) -> Array:
    """Writes a token at each row's place; an array without tokens is replaced."""
    if not has_tokens(dims):
        return new
    rows = jnp.arange(lengths_B.shape[0])
    return old.at[:, rows, lengths_B % old.shape[2]].set(new[:, :, 0])


def _with_routed(old: Array, new: Array, counts_LB: Array) -> Array:
    """Writes a token at the next place of each row and layer, if there is one.

    The next routed token overwrites a token that was not routed, before any can attend to it.
    """
    layers_L1 = jnp.arange(counts_LB.shape[0])[:, None]
    rows_1B = jnp.arange(counts_LB.shape[1])[None]
    return old.at[layers_L1, rows_1B, counts_LB].set(new[:, :, 0], mode="drop")


def _logits(model: Decoder, x_BTD: Array, positions_B: Array) -> Array:
    """Returns float32 logits [B, vocab_size] after position positions_B[b] of each local row."""
    x_BTD = model.finish(x_BTD)
    x_BD = gather(jnp.take_along_axis(x_BTD, positions_B[:, None, None], axis=1)[:, 0], "model", 1)
    return logits_of(model)(x_BD)


def logits_of(model: Decoder) -> Callable[[Array], Array]:
    """Returns a function from hidden states x_BD, with all of D, to float32 logits [B, vocab_size].

    The head's weight is gathered once, here. Padding rows of the vocabulary are excluded.
    """
    c, head = model.config, model.head()
    weight = gather_weight(head.shard, head.places, model.numerics.compute)
    dimensions = (((1,), (head.letters.index("D"),)), ((), ()))

    def logits(x_BD: Array) -> Array:
        logits_BV = jax.lax.dot_general(
            x_BD, weight, dimensions, preferred_element_type=jnp.float32
        )
        logits_BV = gather(logits_BV, "model", 1)[:, : c.vocab_size] * c.logits_factor
        return capped(logits_BV, c.logit_softcap)

    return logits
