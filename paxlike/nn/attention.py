"""Causal attention with document masks and windows: one signature, several kernels.

| implementation | what runs | where |
|---|---|---|
| reference | `attend` below: two einsums and a softmax | anywhere |
| blocked | `blocked.py`: blocks of queries, scores recomputed in backward | CPUs, anywhere |
| xla | `jax.nn.dot_product_attention`, XLA's own fusion | anywhere |
| cudnn | `jax.nn.dot_product_attention`, cuDNN flash attention | NVIDIA GPUs |
| splash | splash attention, a Pallas kernel | TPUs (interpreted elsewhere, for tests) |
| stand_in | a flash kernel's arrays without its matmuls | programs compiled for analysis only |

Each device computes its own query heads, without communication.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paxlike.accounting import kernel_window
from paxlike.config import ConfigError
from paxlike.nn import remat
from paxlike.nn.blocked import How, blocked
from paxlike.nn.collectives import index
from paxlike.parallel.mesh import axis_sizes

Array = jax.Array


class Scores(NamedTuple):
    """How scores are computed from queries and keys."""

    scale: float = 0.0
    """Their factor. 0: 1/sqrt(H)."""
    softcap: float = 0.0
    """They become softcap * tanh(scores / softcap) (Gemma 2, arXiv 2408.00118). 0: unchanged."""
    window: int = 0
    """Tokens that a position attends to: itself and those before it. 0: all."""

    def factor(self, head_dim: int) -> float:
        return self.scale or head_dim**-0.5


class PrefixColumns(NamedTuple):
    """Keys and values that every document attends to, in front of its own."""

    k_BQKH: Array
    v_BQKH: Array
    mask_BTQ: Array | None
    """Which of them a token sees; its batch may be 1. None: all."""


def attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segments_BT: Array | None,
    implementation: str,
    scores: Scores = Scores(),  # noqa: B008 - immutable
    prefix: PrefixColumns | None = None,
) -> Array:
    """Returns softmax(scores) v of this device's heads, causal and within segments.

    S = T. N // K query heads share each key/value head. segments_BT: int32 document numbers (a
    position attends only to its own document), or None for one document. Returns o_BTNH in q's
    dtype. Raises ConfigError if the implementation does not support the shape or the scores.
    """
    if implementation in ("xla", "cudnn") and scores.softcap:
        raise ConfigError(
            f"model.attention {implementation} has no softcap, and model.attention_softcap is "
            f"{scores.softcap}; set model.attention to blocked."
        )
    run: Callable[..., Array] = _IMPLEMENTATIONS[implementation]
    if prefix is not None:
        if implementation not in PREFIX_KERNELS:
            raise ConfigError(
                f"model.attention {implementation} has no prefix (adapt.kind prefix); set it to "
                "blocked."
            )
        run = functools.partial(run, prefix=prefix)
    if not scores.window:
        return run(q_BTNH, k_BSKH, v_BSKH, segments_BT, scores)
    with jax.named_scope(kernel_window.scope(scores.window)):
        return run(q_BTNH, k_BSKH, v_BSKH, segments_BT, scores)


def own_kv_head(heads: int, kv_heads: int, *arrays_BSKH: Array) -> tuple[Array, ...]:
    """Returns the key/value heads that this device's query heads use.

    With fewer key/value heads than model shards, every device holds all heads and uses one.
    Otherwise the heads are sharded. heads, kv_heads: counts for the whole model.
    """
    shards = axis_sizes()["model"]
    if kv_heads >= shards:
        return arrays_BSKH
    mine = index("model") * (heads // shards) // (heads // kv_heads)
    return tuple(jax.lax.dynamic_slice_in_dim(x, mine, 1, axis=2) for x in arrays_BSKH)


def attend(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    mask_BTS: Array,
    scores: Scores = Scores(),  # noqa: B008 - immutable
) -> Array:
    """Attention under any bool mask (True: attend; its batch may be 1). Softmax in float32.

    The mask has the window of `scores`, if there is one.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = jnp.einsum(
        "BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
    )
    scores_BKGTS = capped(scores_BKGTS * scores.factor(H), scores.softcap)
    scores_BKGTS = jnp.where(
        mask_BTS[:, None, None, :, :], scores_BKGTS, jnp.finfo(jnp.float32).min
    )
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    o_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH)
    return o_BTKGH.reshape(B, T, N, H)


def capped(x: Array, softcap: float) -> Array:
    """softcap * tanh(x / softcap), or x if softcap is 0."""
    return softcap * jnp.tanh(x / softcap) if softcap else x


def causal_mask(T: int, segments_BT: Array | None, window: int = 0) -> Array:
    """Returns bool [B, T, S]: a position attends to itself and earlier ones of its segment, at most
    `window` of them.

    Without segments B is 1.
    """
    mask_BTS = jnp.tril(jnp.ones((T, T), bool))[None]
    if window:
        mask_BTS = mask_BTS & ~jnp.tril(jnp.ones((T, T), bool), -window)[None]
    if segments_BT is not None:
        mask_BTS = mask_BTS & (segments_BT[:, :, None] == segments_BT[:, None, :])
    return mask_BTS


def _reference(q_BTNH, k_BSKH, v_BSKH, segments_BT, scores, prefix=None):
    mask_BTS = causal_mask(q_BTNH.shape[1], segments_BT, scores.window)
    if prefix is not None:
        B, T = q_BTNH.shape[:2]
        Q = prefix.k_BQKH.shape[1]
        seen_BTQ = True if prefix.mask_BTQ is None else prefix.mask_BTQ
        parts = (jnp.broadcast_to(seen_BTQ, (B, T, Q)), jnp.broadcast_to(mask_BTS, (B, T, T)))
        mask_BTS = jnp.concatenate(parts, axis=2)
        k_BSKH = jnp.concatenate((prefix.k_BQKH, k_BSKH), axis=1)
        v_BSKH = jnp.concatenate((prefix.v_BQKH, v_BSKH), axis=1)
    o_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scores)
    (o_BTNH,) = remat.keep(remat.ATTENTION, o_BTNH)
    return o_BTNH


def _dot_product(q_BTNH, k_BSKH, v_BSKH, segments_BT, scores, *, implementation):
    mask = (
        None
        if segments_BT is None
        else (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    )
    try:
        o_BTNH = jax.nn.dot_product_attention(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            mask=mask,
            scale=scores.factor(q_BTNH.shape[-1]),
            is_causal=True,
            local_window_size=(scores.window - 1, 0) if scores.window else None,
            implementation=implementation,
        )
    except (NotImplementedError, RuntimeError) as error:
        # For example a head dim above 128 before Hopper, float32, or no cuDNN.
        remedy = "set model.attention to xla (or precision.compute to bfloat16, if it is float32)"
        raise ConfigError(
            f"model.attention {implementation} cannot run this: {error} Remedy: {remedy}."
        ) from error
    return o_BTNH if implementation == "cudnn" else remat.keep(remat.ATTENTION, o_BTNH)[0]


SPLASH_BLOCK = 512
"""Queries and keys per tile. Keeps the matrix unit busy and fits on-chip memory at head dim 256."""


def _splash(q_BTNH, k_BSKH, v_BSKH, segments_BT, scores):
    # Imported here because importing Pallas takes as long as the rest of the model.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

    T, N, H = q_BTNH.shape[1:]
    if T % 128:
        raise ConfigError(
            f"data.sequence_length {T} is not a multiple of 128, which splash attention requires; "
            "change it, or set model.attention to xla."
        )
    block = next(size for size in (SPLASH_BLOCK, 256, 128) if T % size == 0)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block,
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    one_head: splash_attention_mask.Mask = splash_attention_mask.CausalMask((T, T))
    if scores.window:
        before = scores.window - 1
        one_head = splash_attention_mask.LocalMask((T, T), window_size=(before, 0), offset=0)
    mask = splash_attention_mask.MultiHeadMask([one_head] * N)
    kernel = splash.make_splash_mha_single_device(
        mask,
        block_sizes=sizes,
        interpret=jax.sharding.get_abstract_mesh().abstract_device.platform != "tpu",
        residual_checkpoint_name=remat.ATTENTION,
        attn_logits_soft_cap=scores.softcap or None,
    )

    def one(q_TNH, k_SKH, v_SKH, segments_T=None):
        q_TNH *= scores.factor(H)
        q_NTH, k_KSH, v_KSH = (jnp.swapaxes(x, 0, 1) for x in (q_TNH, k_SKH, v_SKH))
        segments = None if segments_T is None else splash.SegmentIds(segments_T, segments_T)
        return jnp.swapaxes(kernel(q_NTH, k_KSH, v_KSH, segment_ids=segments), 0, 1)

    arrays = (
        (q_BTNH, k_BSKH, v_BSKH) if segments_BT is None else (q_BTNH, k_BSKH, v_BSKH, segments_BT)
    )
    return jax.vmap(one)(*arrays).astype(q_BTNH.dtype)


STAND_IN = "attention_kernel_stand_in"
"""Scope of its instructions, in `op_name`."""


def _stand_in(q_BTNH, k_BSKH, v_BSKH, segments_BT, scores):
    """Reads, writes and saves the same arrays as a flash kernel.

    Replaces cuDNN's kernel where cuDNN is not installed, for compile-time analysis.
    """
    with jax.named_scope(STAND_IN):
        return _flash_arrays(q_BTNH, k_BSKH, v_BSKH)


@jax.custom_vjp
def _flash_arrays(q_BTNH, k_BSKH, v_BSKH):
    return _flash_arrays_forward(q_BTNH, k_BSKH, v_BSKH)[0]


def _flash_arrays_forward(q_BTNH, k_BSKH, v_BSKH):
    queries = q_BTNH.shape[2] // k_BSKH.shape[2]
    o_BTNH = q_BTNH * jnp.repeat(k_BSKH + v_BSKH, queries, axis=2)
    o_BTNH, statistics_BTN = remat.keep(remat.ATTENTION, o_BTNH, o_BTNH.max(-1).astype(jnp.float32))
    return o_BTNH, (q_BTNH, k_BSKH, v_BSKH, o_BTNH, statistics_BTN)


def _flash_arrays_backward(residuals, do_BTNH):
    q_BTNH, k_BSKH, v_BSKH, o_BTNH, statistics_BTN = residuals
    dq_BTNH = (do_BTNH * o_BTNH * statistics_BTN[..., None]).astype(q_BTNH.dtype)
    B, T, K, H = k_BSKH.shape
    dkv_BSKH = (dq_BTNH * q_BTNH).reshape(B, T, K, -1, H).sum(3)
    return dq_BTNH, dkv_BSKH * v_BSKH, dkv_BSKH * k_BSKH


_flash_arrays.defvjp(_flash_arrays_forward, _flash_arrays_backward)


def _blocked(q_BTNH, k_BSKH, v_BSKH, segments_BT, scores, prefix=None):
    how = How(scores.factor(q_BTNH.shape[-1]), scores.softcap, scores.window)
    return blocked(q_BTNH, k_BSKH, v_BSKH, segments_BT, how, prefix)


PREFIX_KERNELS = ("blocked", "reference")


_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "stand_in": _stand_in,
    "reference": _reference,
    "blocked": _blocked,
    "xla": functools.partial(_dot_product, implementation="xla"),
    "cudnn": functools.partial(_dot_product, implementation="cudnn"),
    "splash": _splash,
}
