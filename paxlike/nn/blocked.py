"""Causal attention in blocks of queries, in plain JAX, for platforms without an attention kernel.

Each block of queries attends only to keys up to its own end, and in its window, so most masked
scores are never computed. The backward pass saves the output and the log of the softmax normalizer
and recomputes the probabilities from them (FlashAttention, Dao et al., arXiv 2205.14135, sections
3.1 and B.2, here with full rows of keys). No array is larger than one block's scores.

Query heads that share a key/value head are adjacent rows of one matrix, so multi-query attention
needs no transposes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paxlike.accounting.flops import KeyBlock, query_blocks
from paxlike.nn import remat

Array = jax.Array


class How(NamedTuple):
    """`Scores` of `nn/attention.py`, with the default factor resolved."""

    scale: float
    softcap: float
    window: int


def blocked(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, segments_BT: Array | None, how: How
) -> Array:
    """Returns softmax(scores) v as o_BTNH in q's dtype; causal, within segments, S = T.

    Scores and softmax are computed in float32.
    """
    return _attend(how, q_BTNH, k_BSKH, v_BSKH, segments_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how, q, k, v, segments):
    return _forward(how, q, k, v, segments)[0]


def _forward(how, q, k, v, segments):
    outs, normalizers = [], []
    for block in query_blocks(q.shape[1], how.window):
        scores, scale, _ = _scores(how, q, k, segments, block)
        peak = scores.max(-1, keepdims=True)
        weights = jnp.exp((scores - peak) * scale)
        total = weights.sum(-1, keepdims=True)
        out = jnp.einsum(
            "BKTGS,BSKH->BKTGH",
            weights.astype(v.dtype),
            v[:, block.keys],
            preferred_element_type=jnp.float32,
        )
        outs.append(_merge_heads(out / total, q.dtype))
        normalizers.append((peak * scale + jnp.log(total))[..., 0])
    out, normalizer = remat.keep(remat.ATTENTION, _joined(outs, 1), _joined(normalizers, 2))
    return out, (q, k, v, segments, out, normalizer)


def _backward(how, kept, dout):
    q, k, v, segments, out, normalizer = kept
    kv_heads = k.shape[2]
    # The sum over S of weights * dweights, computed from the output (arXiv 2205.14135, section
    # B.2).
    shift = _rows(
        (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True), kv_heads
    )
    dout, rows = _rows(dout, kv_heads), _rows(q, kv_heads)
    dqs, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for block in query_blocks(q.shape[1], how.window):
        at, keys = block.queries, block.keys
        scores, scale, slope = _scores(how, q, k, segments, block)
        weights = jnp.exp(scores * scale - normalizer[:, :, at, :, None])
        dweights = jnp.einsum(
            "BKTGH,BSKH->BKTGS", dout[:, :, at], v[:, keys], preferred_element_type=jnp.float32
        )
        dscores = weights * (dweights - shift[:, :, at])
        dscores = (dscores if slope is None else dscores * slope).astype(q.dtype)
        dq = jnp.einsum(
            "BKTGS,BSKH->BKTGH", dscores, k[:, keys], preferred_element_type=jnp.float32
        )
        dqs.append(_merge_heads(dq * how.scale, q.dtype))
        dk = dk.at[:, keys].add(_keys(rows[:, :, at], dscores) * how.scale)
        dv = dv.at[:, keys].add(_keys(dout[:, :, at], weights.astype(v.dtype)))
    return _joined(dqs, 1), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _rows(x_BTNH: Array, kv_heads: int) -> Array:
    """Returns [B, K, T, G, H]: T and G are adjacent, the rows of one key/value head's matrix."""
    B, T, N, H = x_BTNH.shape
    return jnp.moveaxis(x_BTNH.reshape(B, T, kv_heads, N // kv_heads, H), 2, 1)


def _merge_heads(x_BKTGH: Array, dtype: jnp.dtype) -> Array:
    B, K, T, G, H = x_BKTGH.shape
    return jnp.moveaxis(x_BKTGH, 1, 2).reshape(B, T, K * G, H).astype(dtype)


def _keys(rows_BKTGH: Array, weights_BKTGS: Array) -> Array:
    # The smaller array is first, because backends transpose the first operand.
    return jnp.einsum(
        "BKTGH,BKTGS->BKHS", rows_BKTGH, weights_BKTGS, preferred_element_type=jnp.float32
    ).transpose(0, 3, 1, 2)


def _scores(how: How, q, k, segments, block: KeyBlock) -> tuple[Array, float, Array | None]:
    """Returns (masked scores, the factor that is still missing, the softcap's derivative).

    The callers apply the factor in float32, fused into other operations.
    """
    at, keys = block.queries, block.keys
    rows = _rows(q[:, at], k.shape[2])
    scores = jnp.einsum("BKTGH,BSKH->BKTGS", rows, k[:, keys], preferred_element_type=jnp.float32)
    factor, slope = how.scale, None
    if how.softcap:
        shares = jnp.tanh(scores * (how.scale / how.softcap))
        scores, factor, slope = how.softcap * shares, 1.0, 1 - jnp.square(shares)
    places_T, places_S = jnp.arange(at.start, at.stop)[:, None], jnp.arange(keys.start, keys.stop)
    mask_BTS = (places_T >= places_S[None])[None]
    if how.window:
        mask_BTS = mask_BTS & (places_T - places_S[None] < how.window)[None]
    if segments is not None:
        mask_BTS = mask_BTS & (segments[:, at, None] == segments[:, None, keys])
    masked = jnp.where(mask_BTS[:, None, :, None], scores, jnp.finfo(jnp.float32).min)
    return masked, factor, slope


def _joined(parts: list[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)
