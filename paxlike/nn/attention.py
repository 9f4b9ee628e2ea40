"""Causal attention with document masks: one signature, a readable reference and the fast paths behind it.

| implementation | what runs | where |
|---|---|---|
| reference | `attend` below: two einsums and a softmax | anywhere |
| blocked | `blocked.py`: blocks of queries, scores computed again in the backward pass | anywhere; what CPUs use |
| xla | `jax.nn.dot_product_attention`, XLA's own fusion | anywhere |
| cudnn | `jax.nn.dot_product_attention`, cuDNN flash attention | NVIDIA GPUs |
| splash | splash attention, a Pallas kernel | TPU (elsewhere interpreted, for tests) |
| stand_in | a flash kernel's arrays, read and written, without its products | where a program is compiled to be read, not run |

Each device attends with its own query heads; no communication. Where there are fewer key/value heads than model shards, every
shard holds all of them and picks the one that its query heads use.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from paxlike.config import ConfigError
from paxlike.nn import remat
from paxlike.nn.blocked import blocked
from paxlike.nn.einsum import on_devices
from paxlike.parallel.mesh import axis_sizes, spec

Array = jax.Array


def attention(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, segments_BT: Array | None, implementation: str) -> Array:
    """softmax(q k^T / sqrt(H)) v, causal, within segments; N query heads share K key/value heads, N // K each.

    S = T. segments_BT: int32 document numbers (attention stays among equal ones), or None for one document.
    Returns o_BTNH in q's dtype and sharding. Raises ConfigError where the implementation cannot take the shape.
    """
    run = _IMPLEMENTATIONS[implementation]
    heads, kv_heads = q_BTNH.shape[2], k_BSKH.shape[2]
    shards = axis_sizes()["model"]

    def device(q, k, v, *segments):
        if kv_heads < shards:
            mine = jax.lax.axis_index("model") * (heads // shards) // (heads // kv_heads)
            k, v = (jax.lax.dynamic_slice_in_dim(x, mine, 1, axis=2) for x in (k, v))
        return run(q, k, v, *segments)

    q_spec, kv_spec = spec("BTNH", q_BTNH.shape), spec("BSKH", k_BSKH.shape)
    segment_specs, segments = ((), ()) if segments_BT is None else ((P(q_spec[0], None),), (segments_BT,))
    return on_devices(device, (q_spec, kv_spec, kv_spec, *segment_specs), q_spec)(q_BTNH, k_BSKH, v_BSKH, *segments)


def attend(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array) -> Array:
    """Attention under any mask (bool, True = may look; the batch may be 1). Scores and softmax in float32."""
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None, :, :], scores_BKGTS * H**-0.5, jnp.finfo(jnp.float32).min)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    o_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH)
    return o_BTKGH.reshape(B, T, N, H)


def causal_mask(T: int, segments_BT: Array | None) -> Array:
    """bool [B, T, S]: a position sees itself and those before it, of its own segment. Batch 1 without segments."""
    mask_BTS = jnp.tril(jnp.ones((T, T), bool))[None]
    if segments_BT is not None:
        mask_BTS = mask_BTS & (segments_BT[:, :, None] == segments_BT[:, None, :])
    return mask_BTS


def _reference(q_BTNH, k_BSKH, v_BSKH, segments_BT=None):
    (o_BTNH,) = remat.keep(remat.ATTENTION, attend(q_BTNH, k_BSKH, v_BSKH, causal_mask(q_BTNH.shape[1], segments_BT)))
    return o_BTNH


def _dot_product(q_BTNH, k_BSKH, v_BSKH, segments_BT=None, *, implementation):
    mask = None if segments_BT is None else (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    try:
        o_BTNH = jax.nn.dot_product_attention(
            q_BTNH, k_BSKH, v_BSKH, mask=mask, is_causal=True, implementation=implementation
        )
    except (NotImplementedError, RuntimeError) as error:
        # Such as a head dim above 128 before Hopper, float32, or no cuDNN.
        remedy = "set model.attention to xla (or precision.compute to bfloat16, if it is float32)"
        raise ConfigError(f"model.attention {implementation} cannot run this: {error} Remedy: {remedy}.") from error
    return o_BTNH if implementation == "cudnn" else remat.keep(remat.ATTENTION, o_BTNH)[0]


SPLASH_BLOCK = 512
"""Queries and keys per tile: large enough to keep the matrix unit busy, small enough for on-chip memory at head dim 256."""


def _splash(q_BTNH, k_BSKH, v_BSKH, segments_BT=None):
    # Here, because importing Pallas takes as long as importing the rest of the model.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

    T, N, H = q_BTNH.shape[1:]
    if T % 128:
        raise ConfigError(
            f"data.sequence_length {T} is not a multiple of 128, as splash attention needs on TPU; "
            "change it, or set model.attention to xla."
        )
    block = next(size for size in (SPLASH_BLOCK, 256, 128) if T % size == 0)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((T, T))] * N)
    kernel = splash.make_splash_mha_single_device(
        mask,
        block_sizes=sizes,
        interpret=jax.sharding.get_abstract_mesh().abstract_device.platform != "tpu",
        residual_checkpoint_name=remat.ATTENTION,
    )

    def one(q_TNH, k_SKH, v_SKH, segments_T=None):
        q_NTH, k_KSH, v_KSH = (jnp.swapaxes(x, 0, 1) for x in (q_TNH * H**-0.5, k_SKH, v_SKH))
        segments = None if segments_T is None else splash.SegmentIds(segments_T, segments_T)
        return jnp.swapaxes(kernel(q_NTH, k_KSH, v_KSH, segment_ids=segments), 0, 1)

    arrays = (q_BTNH, k_BSKH, v_BSKH) if segments_BT is None else (q_BTNH, k_BSKH, v_BSKH, segments_BT)
    return jax.vmap(one)(*arrays).astype(q_BTNH.dtype)


def _stand_in(q_BTNH, k_BSKH, v_BSKH, segments_BT=None):
    """What a flash kernel reads, writes and keeps: cuDNN's cannot be compiled where cuDNN is not installed."""
    return _flash_arrays(q_BTNH, k_BSKH, v_BSKH)


@jax.custom_vjp
def _flash_arrays(q_BTNH, k_BSKH, v_BSKH):
    return _flash_arrays_forward(q_BTNH, k_BSKH, v_BSKH)[0]


def _flash_arrays_forward(q_BTNH, k_BSKH, v_BSKH):
    queries = q_BTNH.shape[2] // k_BSKH.shape[2]
    o_BTNH = q_BTNH * jnp.repeat(k_BSKH + v_BSKH, queries, axis=2)
    o_BTNH, statistics_BTN = remat.keep(remat.ATTENTION, o_BTNH, o_BTNH.max(-1).astype(jnp.float32))
    return o_BTNH, (q_BTNH, k_BSKH, v_BSKH, o_BTNH, statistics_BTN)


def _flash_arrays_backward(kept, do_BTNH):
    q_BTNH, k_BSKH, v_BSKH, o_BTNH, statistics_BTN = kept
    dq_BTNH = (do_BTNH * o_BTNH * statistics_BTN[..., None]).astype(q_BTNH.dtype)
    B, T, K, H = k_BSKH.shape
    dkv_BSKH = (dq_BTNH * q_BTNH).reshape(B, T, K, -1, H).sum(3)
    return dq_BTNH, dkv_BSKH * v_BSKH, dkv_BSKH * k_BSKH


_flash_arrays.defvjp(_flash_arrays_forward, _flash_arrays_backward)

_IMPLEMENTATIONS = {
    "stand_in": _stand_in,
    "reference": _reference,
    "blocked": blocked,
    "xla": functools.partial(_dot_product, implementation="xla"),
    "cudnn": functools.partial(_dot_product, implementation="cudnn"),
    "splash": _splash,
}
