"""The forward pass of softmax attention; `architecture/attention.py` declares it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from paxlike.config import ModelConfig
from paxlike.models.branch import Cache, Context, Forward
from paxlike.nn import remat
from paxlike.nn.attention import PrefixColumns, Scores, attend, attention, own_kv_head
from paxlike.nn.einsum import einsum
from paxlike.nn.norm import head_norm
from paxlike.nn.prefix import Prefix
from paxlike.nn.rotary import NO_SCALING, rotate
from paxlike.nn.stream import Stream, add_once
from paxlike.parallel.mesh import axis_sizes

Array = jax.Array


class Heads(NamedTuple):
    """How queries are made of the stream, and how their results return to it."""

    queries: Callable[[Any, Stream, Context], tuple[Array, Any]]
    """(weights, normed stream, context) -> (q_BTNH before norms and RoPE, what `output` needs)."""
    output: Callable[[Any, Array, Any, Context], tuple[Array, Cache]]
    """(weights, o_BTNH, of `queries`, context) -> (partial_BTD, statistics of a router)."""


def _sequence(
    w, y_BTD: Stream, context: Context, *, local: bool, heads: Heads
) -> tuple[Array, Cache]:
    c = context.config
    (q_BTNH, k_BTKH, v_BTKH), made = _projections(w, y_BTD, context, local, heads)
    k_own, v_own = own_kv_head(c.heads, c.kv_heads, k_BTKH, v_BTKH)
    kernel, scores = context.numerics.attention, _scores(c, local)
    columns, cache = None, {"k": k_BTKH, "v": v_BTKH}
    if w.prefix is not None:
        columns, cache = _prefix(w.prefix, cache, context, scores.window)
    o_BTNH = attention(q_BTNH, k_own, v_own, context.segments_BT, kernel, scores, columns)
    partial_BTD, statistics = heads.output(w, o_BTNH, made, context)
    return partial_BTD, {**cache, **statistics}


def _prefix(
    prefix: Prefix, cache: Cache, context: Context, window: int
) -> tuple[PrefixColumns, Cache]:
    """What tokens attend to in front of their document, and a cache that begins with it."""
    c, B = context.config, cache["k"].shape[0]

    def rows(x: Array) -> Array:
        return jnp.broadcast_to(x, (B, *x.shape[1:])).astype(cache["k"].dtype)

    k_BQKH, v_BQKH = rows(prefix.k_BQKH), rows(prefix.v_BQKH)
    mask_BTQ = prefix.mask_BTQ(context.positions_BT, window)
    k_own, v_own = own_kv_head(c.heads, c.kv_heads, k_BQKH, v_BQKH)
    columns = PrefixColumns(k_own, v_own, mask_BTQ)
    both = {"k": (k_BQKH, cache["k"]), "v": (v_BQKH, cache["v"])}
    return columns, {name: jnp.concatenate(pair, axis=1) for name, pair in both.items()}


def _token(
    w, y_BTD: Stream, context: Context, cache: Cache, *, local: bool, heads: Heads
) -> tuple[Array, Cache]:
    """Over the cache and the token itself, whose position is the number of tokens before it.

    A cache of S places has the newest S tokens: position p at place p modulo S.
    """
    c, lengths_B = context.config, context.positions_BT[:, 0]
    (q_BTNH, k_BTKH, v_BTKH), made = _projections(w, y_BTD, context, local, heads)
    S = cache["k"].shape[1]
    # Negative for earlier positions than the token's, and 0 for its own.
    places_BS = jnp.arange(S, dtype=jnp.int32)[None] - lengths_B[:, None]
    seen_BS = places_BS <= 0
    if local:
        places_BS = -(-places_BS % S)
        seen_BS = places_BS + lengths_B[:, None] >= 0
    here = (places_BS == 0)[:, :, None, None]
    own = own_kv_head(c.heads, c.kv_heads, k_BTKH, v_BTKH, cache["k"], cache["v"])
    k_new, v_new, k_old, v_old = own
    # A select, although the cache itself is updated by a scatter: it is part of reading, not a
    # copy.
    k_BSKH, v_BSKH = jnp.where(here, k_new, k_old), jnp.where(here, v_new, v_old)
    o_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, seen_BS[:, None], _scores(c, local))
    return heads.output(w, o_BTNH, made, context)[0], {"k": k_BTKH, "v": v_BTKH}


def _scores(c: ModelConfig, local: bool) -> Scores:
    return Scores(c.query_scale, c.attention_softcap, c.sliding_window if local else 0)


def _projections(
    w, y_BTD: Stream, context: Context, local: bool, heads: Heads
) -> tuple[tuple[Array, Array, Array], Any]:
    """((q_BTNH, k_BTKH, v_BTKH), rotated by position; what the output of the heads needs)."""
    c = context.config
    q_BTNH, made = heads.queries(w, y_BTD, context)
    k_BTKH = einsum("BTD,DKH->BTKH", y_BTD, w.wk_DKH)
    v_BTKH = einsum("BTD,DKH->BTKH", y_BTD, w.wv_DKH)
    if c.attention_bias != "none":
        k_BTKH += w.bk_KH.astype(k_BTKH.dtype)[None, None]
        v_BTKH += w.bv_KH.astype(v_BTKH.dtype)[None, None]
    q_BTNH, k_BTKH, v_BTKH = remat.keep(remat.PROJECTION, q_BTNH, k_BTKH, v_BTKH)
    if c.qk_norm != "none":
        q_BTNH, k_BTKH = _normed_heads(w, q_BTNH, k_BTKH, c)
    if c.learned_positions:
        return (q_BTNH, k_BTKH, v_BTKH), made
    theta, scaling = c.rope_theta, c.rope_scaling
    if local and c.local_rope_theta:
        theta, scaling = c.local_rope_theta, NO_SCALING
    how = context.positions_BT, theta, scaling, c.rope_fraction
    return (rotate(q_BTNH, *how), rotate(k_BTKH, *how), v_BTKH), made


def _normed_heads(w, q_BTNH: Array, k_BTKH: Array, c: ModelConfig) -> tuple[Array, Array]:
    letters = ("H", "H") if c.qk_norm == "head" else ("NH", "KH")
    # Key heads are replicated where there are fewer than model shards.
    sharded = ("model",) if c.kv_heads >= axis_sizes()["model"] else ()

    def normed(x_BTNH: Array, name: str, axes: tuple[str, ...]) -> Array:
        return head_norm(x_BTNH, w[name], c.norm_epsilon, c.qk_norm, axes, c.norm_offset)

    q_BTNH = normed(q_BTNH, f"q_scale_{letters[0]}", ("model",))
    return q_BTNH, normed(k_BTKH, f"k_scale_{letters[1]}", sharded)


def _queries(w, y_BTD: Stream, context: Context) -> tuple[Array, None]:
    q_BTNH = einsum("BTD,DNH->BTNH", y_BTD, w.wq_DNH)
    if context.config.attention_bias != "none":
        q_BTNH += w.bq_NH.astype(q_BTNH.dtype)[None, None]
    return q_BTNH, None


def _output(w, o_BTNH: Array, _: None, context: Context) -> tuple[Array, Cache]:
    partial_BTD = einsum("BTNH,NHD->BTD", o_BTNH, w.wo_NHD)
    if context.config.attention_bias == "qkvo":
        partial_BTD = add_once(partial_BTD, w.bo_D)
    return partial_BTD, {}


def with_heads(heads: Heads, local: bool = False, statistics: tuple[str, ...] = ()) -> Forward:
    """The forward pass of attention with these heads. statistics: of `Heads.output`."""
    how = functools.partial(_sequence, local=local, heads=heads)
    return Forward(how, functools.partial(_token, local=local, heads=heads), statistics)


_HEADS = Heads(_queries, _output)
FORWARD, LOCAL = with_heads(_HEADS), with_heads(_HEADS, local=True)
