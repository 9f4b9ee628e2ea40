"""Causal attention in blocks of queries, in plain JAX, for platforms without an attention kernel.

Each block of queries attends only to keys up to its own end, so most masked scores are never
computed. The backward pass saves the output and the log of the softmax normalizer and recomputes
the probabilities from them (FlashAttention, Dao et al., arXiv 2205.14135, sections 3.1 and B.2,
here with full rows of keys). No array is larger than one block's scores.

Query heads that share a key/value head are adjacent rows of one matrix, so multi-query attention
needs no transposes.
"""

import jax
import jax.numpy as jnp

from paxlike.accounting.flops import query_blocks
from paxlike.nn import remat

Array = jax.Array


def blocked(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, segments_BT: Array | None = None) -> Array:
    """Returns softmax(q k^T / sqrt(H)) v as o_BTNH in q's dtype; causal, within segments, S = T.

    Scores and softmax are computed in float32.
    """
    return _attend(q_BTNH, k_BSKH, v_BSKH, segments_BT)


@jax.custom_vjp
def _attend(q, k, v, segments):
    return _forward(q, k, v, segments)[0]


def _forward(q, k, v, segments):
    scale, outs, normalizers = q.shape[-1] ** -0.5, [], []
    for begin, end in query_blocks(q.shape[1]):
        scores = _scores(q, k, segments, begin, end)
        peak = scores.max(-1, keepdims=True)
        weights = jnp.exp((scores - peak) * scale)
        total = weights.sum(-1, keepdims=True)
        out = jnp.einsum(
            "BKTGS,BSKH->BKTGH",
            weights.astype(v.dtype),
            v[:, :end],
            preferred_element_type=jnp.float32,
        )
        outs.append(_merge_heads(out / total, q.dtype))
        normalizers.append((peak * scale + jnp.log(total))[..., 0])
    out, normalizer = remat.keep(remat.ATTENTION, _joined(outs, 1), _joined(normalizers, 2))
    return out, (q, k, v, segments, out, normalizer)


def _backward(kept, dout):
    q, k, v, segments, out, normalizer = kept
    scale, kv_heads = q.shape[-1] ** -0.5, k.shape[2]
    # The sum over S of weights * dweights, computed from the output (arXiv 2205.14135, section
    # B.2).
    shift = _rows(
        (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True), kv_heads
    )
    dout, rows = _rows(dout, kv_heads), _rows(q, kv_heads)
    dqs, dk, dv = [], jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    for begin, end in query_blocks(q.shape[1]):
        at = slice(begin, end)
        weights = jnp.exp(
            _scores(q, k, segments, begin, end) * scale - normalizer[:, :, at, :, None]
        )
        dweights = jnp.einsum(
            "BKTGH,BSKH->BKTGS", dout[:, :, at], v[:, :end], preferred_element_type=jnp.float32
        )
        dscores = (weights * (dweights - shift[:, :, at])).astype(q.dtype)
        dq = jnp.einsum(
            "BKTGS,BSKH->BKTGH", dscores, k[:, :end], preferred_element_type=jnp.float32
        )
        dqs.append(_merge_heads(dq * scale, q.dtype))
        dk = dk.at[:, :end].add(_keys(rows[:, :, at], dscores) * scale)
        dv = dv.at[:, :end].add(_keys(dout[:, :, at], weights.astype(v.dtype)))
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


def _scores(q, k, segments, begin, end):
    """Returns masked scores, not yet divided by sqrt(H).

    The callers divide in float32, fused into other operations.
    """
    rows = _rows(q[:, begin:end], k.shape[2])
    scores = jnp.einsum("BKTGH,BSKH->BKTGS", rows, k[:, :end], preferred_element_type=jnp.float32)
    mask_BTS = (jnp.arange(begin, end)[:, None] >= jnp.arange(end)[None])[None]
    if segments is not None:
        mask_BTS = mask_BTS & (segments[:, begin:end, None] == segments[:, None, :end])
    return jnp.where(mask_BTS[:, None, :, None], scores, jnp.finfo(jnp.float32).min)


def _joined(parts: list[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)
