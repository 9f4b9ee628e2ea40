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

from paxlike.accounting.query_blocks import KeyBlock, query_blocks
from paxlike.nn import remat

Array = jax.Array


class How(NamedTuple):
    """`Scores` of `nn/attention.py`, with the default factor resolved."""

    scale: float
    softcap: float
    window: int


class Prefix(NamedTuple):
    """Keys and values in front of all documents, which every block reads (`PrefixColumns`)."""

    k: Array
    v: Array
    mask: Array | None


def blocked(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segments_BT: Array | None,
    how: How,
    prefix: tuple[Array, Array, Array | None] | None = None,
) -> Array:
    """Returns softmax(scores) v as o_BTNH in q's dtype; causal, within segments, S = T.

    Scores and softmax are computed in float32. prefix: k_BQKH, v_BQKH and mask_BTQ of
    `PrefixColumns`.
    """
    columns = None if prefix is None else Prefix(*prefix)
    return _attend(how, q_BTNH, k_BSKH, v_BSKH, segments_BT, columns)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how, q, k, v, segments, prefix):
    return _forward(how, q, k, v, segments, prefix)[0]


def _forward(how, q, k, v, segments, prefix):
    outs, normalizers = [], []
    for block in query_blocks(q.shape[1], how.window):
        scores, scale, _ = _scores(how, q, k, segments, prefix, block)
        peak = scores.max(-1, keepdims=True)
        weights = jnp.exp((scores - peak) * scale)
        total = weights.sum(-1, keepdims=True)
        out = jnp.einsum(
            "BKTGS,BSKH->BKTGH",
            weights.astype(v.dtype),
            _columns(v, prefix and prefix.v, block.keys),
            preferred_element_type=jnp.float32,
        )
        outs.append(_merge_heads(out / total, q.dtype))
        normalizers.append((peak * scale + jnp.log(total))[..., 0])
    out, normalizer = remat.keep(remat.ATTENTION, _joined(outs, 1), _joined(normalizers, 2))
    return out, (q, k, v, segments, prefix, out, normalizer)


def _backward(how, kept, dout):
    q, k, v, segments, prefix, out, normalizer = kept
    before = 0 if prefix is None else prefix.k.shape[1]
    kv_heads = k.shape[2]
    # The sum over S of weights * dweights, computed from the output (arXiv 2205.14135, section
    # B.2).
    shift = _rows(
        (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True), kv_heads
    )
    dout, rows = _rows(dout, kv_heads), _rows(q, kv_heads)
    B, T, K, H = k.shape
    # Of the prefix and the keys, in one array.
    dqs, dk = [], jnp.zeros((B, before + T, K, H), jnp.float32)
    dv = jnp.zeros_like(dk)
    for block in query_blocks(q.shape[1], how.window):
        at, keys = block.queries, block.keys
        scores, scale, slope = _scores(how, q, k, segments, prefix, block)
        weights = jnp.exp(scores * scale - normalizer[:, :, at, :, None])
        dweights = jnp.einsum(
            "BKTGH,BSKH->BKTGS",
            dout[:, :, at],
            _columns(v, prefix and prefix.v, keys),
            preferred_element_type=jnp.float32,
        )
        dscores = weights * (dweights - shift[:, :, at])
        dscores = (dscores if slope is None else dscores * slope).astype(q.dtype)
        dq = jnp.einsum(
            "BKTGS,BSKH->BKTGH",
            dscores,
            _columns(k, prefix and prefix.k, keys),
            preferred_element_type=jnp.float32,
        )
        dqs.append(_merge_heads(dq * how.scale, q.dtype))
        dk = _added(dk, before, keys, _keys(rows[:, :, at], dscores) * how.scale)
        dv = _added(dv, before, keys, _keys(dout[:, :, at], weights.astype(v.dtype)))
    dk, dv = dk.astype(k.dtype), dv.astype(v.dtype)
    dprefix = None if prefix is None else Prefix(dk[:, :before], dv[:, :before], None)
    return _joined(dqs, 1), dk[:, before:], dv[:, before:], None, dprefix


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


def _columns(x: Array, prefix: Array | None, keys: slice) -> Array:
    """The keys (or values) that a block attends to, those of a prefix first."""
    return x[:, keys] if prefix is None else jnp.concatenate((prefix, x[:, keys]), axis=1)


def _added(sums: Array, before: int, keys: slice, new: Array) -> Array:
    """Adds the gradients of a block's columns; the first `before` are those of a prefix."""
    moved = slice(before + keys.start, before + keys.stop)
    if not before:
        return sums.at[:, moved].add(new)
    return sums.at[:, :before].add(new[:, :before]).at[:, moved].add(new[:, before:])


def _scores(
    how: How, q, k, segments, prefix: Prefix | None, block: KeyBlock
) -> tuple[Array, float, Array | None]:
    """Returns (masked scores, the factor that is still missing, the softcap's derivative).

    The callers apply the factor in float32, fused into other operations.
    """
    at, keys = block.queries, block.keys
    rows = _rows(q[:, at], k.shape[2])
    columns = _columns(k, prefix and prefix.k, keys)
    scores = jnp.einsum("BKTGH,BSKH->BKTGS", rows, columns, preferred_element_type=jnp.float32)
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
    if prefix is not None:
        rows_BT = q[:, at].shape[:2]
        seen = True if prefix.mask is None else prefix.mask[:, at]
        seen_BTQ = jnp.broadcast_to(seen, (*rows_BT, prefix.k.shape[1]))
        own_BTS = jnp.broadcast_to(mask_BTS, (*rows_BT, mask_BTS.shape[2]))
        mask_BTS = jnp.concatenate((seen_BTQ, own_BTS), axis=2)
    masked = jnp.where(mask_BTS[:, None, :, None], scores, jnp.finfo(jnp.float32).min)
    return masked, factor, slope


def _joined(parts: list[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)
