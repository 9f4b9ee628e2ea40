"""The forward pass of softmax attention with RoPE; `architecture/attention.py` declares it."""

import jax
import jax.numpy as jnp

from paxlike.models.branch import Cache, Context, Forward
from paxlike.nn import remat
from paxlike.nn.attention import attend, attention, own_kv_head
from paxlike.nn.einsum import einsum
from paxlike.nn.norm import head_norm
from paxlike.nn.rotary import rotate
from paxlike.nn.stream import Stream, add_once

Array = jax.Array


def _sequence(w, y_BTD: Stream, context: Context) -> tuple[Array, Cache]:
    q_BTNH, k_BTKH, v_BTKH = _projections(w, y_BTD, context)
    k_own, v_own = own_kv_head(context.config.heads, context.config.kv_heads, k_BTKH, v_BTKH)
    kernel = context.numerics.attention
    o_BTNH = attention(q_BTNH, k_own, v_own, context.segments_BT, kernel)
    return _output(w, o_BTNH, context), {"k": k_BTKH, "v": v_BTKH}


def _token(w, y_BTD: Stream, context: Context, cache: Cache) -> tuple[Array, Cache]:
    """Over the cache and the token itself, whose position is the number of tokens before it."""
    c, lengths_B = context.config, context.positions_BT[:, 0]
    q_BTNH, k_BTKH, v_BTKH = _projections(w, y_BTD, context)
    places_BS = jnp.arange(cache["k"].shape[1], dtype=jnp.int32)[None] - lengths_B[:, None]
    here = (places_BS == 0)[:, :, None, None]
    heads = own_kv_head(c.heads, c.kv_heads, k_BTKH, v_BTKH, cache["k"], cache["v"])
    k_new, v_new, k_old, v_old = heads
    # A select, although the cache itself is updated by a scatter: it is part of reading, not a
    # copy.
    k_BSKH, v_BSKH = jnp.where(here, k_new, k_old), jnp.where(here, v_new, v_old)
    o_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, (places_BS <= 0)[:, None])
    return _output(w, o_BTNH, context), {"k": k_BTKH, "v": v_BTKH}


FORWARD = Forward(_sequence, _token)


def _projections(w, y_BTD: Stream, context: Context) -> tuple[Array, Array, Array]:
    """(q_BTNH, k_BTKH, v_BTKH), rotated by position."""
    c = context.config
    q_BTNH = einsum("BTD,DNH->BTNH", y_BTD, w.wq_DNH)
    k_BTKH = einsum("BTD,DKH->BTKH", y_BTD, w.wk_DKH)
    v_BTKH = einsum("BTD,DKH->BTKH", y_BTD, w.wv_DKH)
    if c.attention_bias != "none":
        q_BTNH += w.bq_NH.astype(q_BTNH.dtype)[None, None]
        k_BTKH += w.bk_KH.astype(k_BTKH.dtype)[None, None]
        v_BTKH += w.bv_KH.astype(v_BTKH.dtype)[None, None]
    q_BTNH, k_BTKH, v_BTKH = remat.keep(remat.PROJECTION, q_BTNH, k_BTKH, v_BTKH)
    if c.qk_norm:
        q_BTNH = head_norm(q_BTNH, w.q_scale_H, c.norm_epsilon)
        k_BTKH = head_norm(k_BTKH, w.k_scale_H, c.norm_epsilon)
    how = context.positions_BT, c.rope_theta, c.rope_scaling, c.rope_fraction
    return rotate(q_BTNH, *how), rotate(k_BTKH, *how), v_BTKH


def _output(w, o_BTNH: Array, context: Context) -> Array:
    partial_BTD = einsum("BTNH,NHD->BTD", o_BTNH, w.wo_NHD)
    if context.config.attention_bias == "qkvo":
        partial_BTD = add_once(partial_BTD, w.bo_D)
    return partial_BTD
