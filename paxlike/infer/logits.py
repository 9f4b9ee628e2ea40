"""Logits of given tokens at every position."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.config import ModelConfig, UserError
from paxlike.infer.cache import inference_decoder, logits_of
from paxlike.infer.generate import LENGTH_MULTIPLE, rounded_up
from paxlike.nn.collectives import gather, on_devices, specs_of, whole_batch
from paxlike.nn.intervention import row_prompts
from paxlike.nn.numerics import Numerics
from paxlike.parallel.mesh import batch_shards, spec


def logits(
    config: ModelConfig, numerics: Numerics, params: dict, tokens_BT: np.ndarray
) -> np.ndarray:
    """Returns float32 [B, T, vocab_size]: position t predicts token t + 1 from tokens 0 to t. Every
    row is a prompt.

    params: on the active mesh, as `infer.generate.for_inference` returns them. Raises UserError if
    the tokens are not an integer array [B, T] within the model's vocabulary.
    """
    tokens = np.asarray(tokens_BT)
    if tokens.ndim != 2 or not tokens.size or not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(
            f"tokens have shape {tokens.shape} and dtype {tokens.dtype}; pass a non-empty integer "
            "array [batch, time]."
        )
    if tokens.min() < 0 or tokens.max() >= config.vocab_size:
        raise UserError(
            f"tokens range from {tokens.min()} to {tokens.max()}, but the model's vocabulary is 0 "
            f"to {config.vocab_size - 1}."
        )
    B, T = tokens.shape
    # T has few distinct values, so that few programs are compiled. Right padding is never attended
    # to.
    shortest = LENGTH_MULTIPLE if numerics.attention == "splash" else 16
    length = max(shortest, 2 ** (T - 1).bit_length())
    rows = rounded_up(B, batch_shards())
    padded = np.zeros((rows, length), np.int32)
    padded[:B, :T] = tokens
    sharding = NamedSharding(jax.sharding.get_mesh(), spec("BT", padded.shape))
    lengths = np.full(rows, T, np.int32)
    lengths_B = jax.device_put(lengths, NamedSharding(sharding.mesh, spec("B", lengths.shape)))
    tokens_BT = jax.device_put(padded, sharding)
    logits_BTV = _logits(params, tokens_BT, lengths_B, config=config, numerics=numerics)
    return np.asarray(logits_BTV)[:B, :T]


@functools.partial(jax.jit, static_argnames=("config", "numerics"))
def _logits(params, tokens_BT, lengths_B, *, config, numerics):
    def device(params, tokens, lengths):
        model = inference_decoder(config, numerics, params)
        x_BTD = gather(model(tokens, prompts=row_prompts(*tokens.shape, lengths)), "model", 2)
        logits_BV = logits_of(model)(x_BTD.reshape(-1, x_BTD.shape[-1]))
        logits_BTV = logits_BV.reshape(*tokens.shape, -1).astype(jnp.float32)
        return whole_batch(logits_BTV)

    places = spec("BT", tokens_BT.shape), spec("B", lengths_B.shape)
    return on_devices(device, (specs_of(params), *places), P())(params, tokens_BT, lengths_B)
