"""Generating tokens: prompts are read at once, then one token a row and step, on any mesh.

A step is one compiled program whatever the position, so that a token costs the same at the start and at the end of a text. The next step is
dispatched before the last one's tokens are read: the device never waits for Python.

What a row becomes depends on the parameters, its prompt, its number in the list and the seed; not on the other rows nor on the mesh.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.config import ModelConfig, UserError
from paxlike.infer.cache import decode, prefill
from paxlike.nn.einsum import gather, on_devices
from paxlike.nn.quantized import QuantizedWeight, quantize_params
from paxlike.nn.weight import Numerics
from paxlike.parallel.axes import letters_of
from paxlike.parallel.mesh import axis_sizes, spec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The distribution that a token is drawn from. The settings apply in the order of the fields."""

    temperature: float = 0.0
    """Logits are divided by it. 0: the most likely token, always."""
    top_k: int = 0
    """Only the k most likely tokens. 0: all."""
    top_p: float = 1.0
    """Only the fewest most likely tokens whose probabilities sum to p or more (Holtzman et al., arXiv 1904.09751)."""

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; it must be 0 (the most likely token) or more.")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be 1 or more, or 0 for all tokens.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")


def sample(logits_BV: Array, places_B: Array, seed: Array, sampling: Sampling) -> Array:
    """One int32 token a row, whole on every device.

    logits_BV: float32; places_B: the positions that the tokens will have. A draw is a function of (logits, row, place, seed).
    """

    def draw(logits_V, row, place, seed):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), place)
        logits_V = logits_V / sampling.temperature
        if not sampling.top_k and sampling.top_p == 1:
            return jax.random.categorical(key, logits_V)
        vocabulary = logits_V.shape[0]
        likely, tokens = jax.lax.top_k(logits_V, min(sampling.top_k or vocabulary, vocabulary))
        probabilities = jax.nn.softmax(likely)
        before = jnp.cumsum(probabilities) - probabilities
        return tokens[jax.random.categorical(key, jnp.where(before < sampling.top_p, likely, -jnp.inf))]

    def device(logits, places, seed):
        if sampling.temperature == 0:
            tokens = logits.argmax(-1)
        else:
            rows = jax.lax.axis_index(("pod", "data")) * len(places) + jnp.arange(len(places))
            tokens = jax.vmap(draw, in_axes=(0, 0, 0, None))(logits, rows, places, seed)
        return gather(gather(tokens.astype(jnp.int32), "data", 0), "pod", 0)

    (rows,) = spec("B", places_B.shape)
    return on_devices(device, (P(rows, None), P(rows), P()), P(None))(logits_BV, places_B, seed)


_STATIC = ("config", "numerics", "sampling")


@functools.partial(jax.jit, static_argnames=(*_STATIC, "cache_length"))
def _start(params, tokens_BT, lengths_B, seed, *, config, numerics, sampling, cache_length):
    lengths_B = jax.sharding.reshard(lengths_B, spec("B", lengths_B.shape))
    cache, logits_BV = prefill(config, numerics, params, tokens_BT, lengths_B, cache_length)
    return cache, sample(logits_BV, lengths_B, seed, sampling), lengths_B


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames=("cache", "lengths_B"))
def _step(params, cache, tokens_B, lengths_B, seed, *, config, numerics, sampling):
    tokens_B = jax.sharding.reshard(tokens_B, spec("B", tokens_B.shape))
    cache, logits_BV = decode(config, numerics, params, cache, tokens_B, lengths_B)
    return cache, sample(logits_BV, lengths_B + 1, seed, sampling), lengths_B + 1


LENGTH_MULTIPLE = 128
"""A cache's length is rounded up to this: the lanes of a TPU register, and the tile of splash attention."""


class Generator:
    """Continues prompts with a trained model. Make and use it with the mesh of `params` in force.

    `params`: nested dict as `models.palm.init_params` lays it out. `eod`: the token that ends a text. `max_length`: tokens of a prompt and
    its continuation, for which the cache has room.
    """

    def __init__(self, config: ModelConfig, numerics: Numerics, params: dict, eod: int, max_length: int):
        self.config, self.numerics, self.eod, self.max_length = config, numerics, eod, max_length
        self.params = for_inference(config, numerics, params)

    def generate(
        self,
        prompts: Sequence[np.ndarray | Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        seed: int = 0,
        on_token: Callable[[int, int], bool | None] | None = None,
    ) -> list[np.ndarray]:
        """The new tokens of each prompt, int32: max_new_tokens, or fewer where the end of the text came (which is left out).

        `on_token(row, token)` is called as each token arrives; True ends the row. Raises UserError naming the prompt that is
        empty, too long or not of the model's vocabulary.
        """
        prompts = [np.asarray(prompt, np.int64) for prompt in prompts]
        self._check(prompts, max_new_tokens, seed)
        static = {"config": self.config, "numerics": self.numerics, "sampling": sampling}
        tokens_BT, lengths_B = self._padded(prompts)
        cache_length = rounded_up(self.max_length, LENGTH_MULTIPLE)
        seed_ = np.uint32(seed)
        cache, tokens_B, lengths_B = _start(
            self.params, tokens_BT, lengths_B, seed_, cache_length=cache_length, **static
        )
        texts: list[list[int]] = [[] for _ in prompts]
        going = set(range(len(prompts)))
        for left in reversed(range(max_new_tokens)):
            arrived = tokens_B
            if left:
                cache, tokens_B, lengths_B = _step(self.params, cache, tokens_B, lengths_B, seed_, **static)
            tokens = np.asarray(arrived).tolist()
            for row in sorted(going):
                if tokens[row] == self.eod:
                    going.remove(row)
                    continue
                texts[row].append(tokens[row])
                if on_token and on_token(row, tokens[row]):
                    going.remove(row)
            if not going:
                break
        return [np.array(text, np.int32) for text in texts]

    def _check(self, prompts: list[np.ndarray], max_new_tokens: int, seed: int) -> None:
        if not prompts:
            raise UserError("there are no prompts; give at least one.")
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}; it must be 1 or more.")
        if not 0 <= seed < 2**32:
            raise UserError(f"the seed is {seed}; it must be from 0 to {2**32 - 1}.")
        for number, prompt in enumerate(prompts):
            if prompt.ndim != 1 or not prompt.size:
                raise UserError(f"prompt {number} is empty (shape {prompt.shape}); give at least one token.")
            if prompt.min() < 0 or prompt.max() >= self.config.vocab_size:
                raise UserError(
                    f"prompt {number} has tokens from {prompt.min()} to {prompt.max()}, but the model's vocabulary is 0 to "
                    f"{self.config.vocab_size - 1}; use the tokenizer that the model was trained with."
                )
            if prompt.size + max_new_tokens > self.max_length:
                raise UserError(
                    f"prompt {number} has {prompt.size} tokens and {max_new_tokens} more are asked for, together more than "
                    f"max_length {self.max_length}; shorten the prompt, ask for fewer, or raise max_length."
                )

    def _padded(self, prompts: list[np.ndarray]) -> tuple[Array, Array]:
        """(tokens_BT, lengths_B) with lengths of a few kinds, so that few programs are compiled, and rows for the whole mesh."""
        shortest = LENGTH_MULTIPLE if self.numerics.attention == "splash" else 16
        longest = max(prompt.size for prompt in prompts)
        T = min(max(shortest, 2 ** (longest - 1).bit_length()), rounded_up(self.max_length, LENGTH_MULTIPLE))
        mesh = jax.sharding.get_mesh()
        B = rounded_up(len(prompts), axis_sizes()["pod"] * axis_sizes()["data"])
        tokens_BT, lengths_B = np.zeros((B, T), np.int32), np.ones(B, np.int32)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, : prompt.size], lengths_B[row] = prompt, prompt.size
        return (
            jax.device_put(tokens_BT, NamedSharding(mesh, spec("BT", (B, T)))),
            jax.device_put(lengths_B, NamedSharding(mesh, P())),
        )


def rounded_up(number: int, multiple: int) -> int:
    """The least multiple that is not below the number."""
    return -(-number // multiple) * multiple


def for_inference(config: ModelConfig, numerics: Numerics, params: dict) -> dict:
    """Parameters as they are used, made once: quantized where the config says so, then in the compute dtype. Twice is the same as once."""
    if config.quant.active:
        params = quantize_params(config, numerics, params)
    return in_compute_dtype(params, numerics)


def in_compute_dtype(params: dict, numerics: Numerics) -> dict:
    """The matrices cast once, not at every token; norm scales, which are multiplied in float32, as they are."""

    def cast(path, w):
        if isinstance(w, QuantizedWeight):
            return w
        scale = len(letters_of(path[-1].key)) == 1
        return w if scale or w.dtype == numerics.compute else w.astype(numerics.compute)

    return jax.tree_util.tree_map_with_path(cast, params, is_leaf=lambda w: isinstance(w, QuantizedWeight))
