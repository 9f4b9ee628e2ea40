"""Generation: prompts are read at once, then each step makes one token per row, on any mesh.

A step is one compiled program for every position, so its cost does not grow with the length of the
text. The next step is dispatched before the previous tokens are read, so the device never waits for
Python.

A row's tokens depend on the parameters, its prompt, its index in the list and the seed, but not on
other rows or the mesh.
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
from paxlike.infer.cache import cached_lengths, decode, prefill
from paxlike.nn.collectives import gather, on_devices
from paxlike.nn.numerics import Numerics
from paxlike.nn.quantized import QuantizedWeight, quantize_params
from paxlike.nn.rows import RowFactors, prefix_counts
from paxlike.nn.wrapped import Wrapped
from paxlike.parallel.axes import letters_of
from paxlike.parallel.mesh import axis_sizes, spec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The distribution that tokens are sampled from. Settings apply in the order of the fields."""

    temperature: float = 0.0
    """Divides the logits. 0 always takes the most likely token."""
    top_k: int = 0
    """Sample from the k most likely tokens only. 0: all tokens."""
    top_p: float = 1.0
    """Sample from the smallest set of most likely tokens whose probabilities sum to at least p
    (Holtzman et al., arXiv 1904.09751).
    """

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise UserError(
                f"temperature is {self.temperature}; it must be 0 (the most likely token) or more."
            )
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be 1 or more, or 0 for all tokens.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")


def sample(logits_BV: Array, positions_B: Array, seed: Array, sampling: Sampling) -> Array:
    """Samples one int32 token per row, replicated on every device.

    logits_BV: float32. positions_B: the positions that the tokens will have. A sample is a function
    of (logits, row, position, seed).
    """

    def draw(logits_V, row, position, seed):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), position)
        logits_V = logits_V / sampling.temperature
        if not sampling.top_k and sampling.top_p == 1:
            return jax.random.categorical(key, logits_V)
        vocabulary = logits_V.shape[0]
        likely, tokens = jax.lax.top_k(logits_V, min(sampling.top_k or vocabulary, vocabulary))
        probabilities = jax.nn.softmax(likely)
        before = jnp.cumsum(probabilities) - probabilities
        return tokens[
            jax.random.categorical(key, jnp.where(before < sampling.top_p, likely, -jnp.inf))
        ]

    def device(logits, positions, seed):
        if sampling.temperature == 0:
            tokens = logits.argmax(-1)
        else:
            rows = jax.lax.axis_index(("pod", "data")) * len(positions) + jnp.arange(len(positions))
            tokens = jax.vmap(draw, in_axes=(0, 0, 0, None))(logits, rows, positions, seed)
        return gather(gather(tokens.astype(jnp.int32), "data", 0), "pod", 0)

    (rows,) = spec("B", positions_B.shape)
    return on_devices(device, (P(rows, None), P(rows), P()), P(None))(logits_BV, positions_B, seed)


_STATIC = ("config", "numerics", "sampling")


@functools.partial(jax.jit, static_argnames=(*_STATIC, "cache_length"))
def _start(params, tokens_BT, lengths_B, seed, *, config, numerics, sampling, cache_length):
    lengths_B = jax.sharding.reshard(lengths_B, spec("B", lengths_B.shape))
    cache, logits_BV = prefill(config, numerics, params, tokens_BT, lengths_B, cache_length)
    lengths_B = cached_lengths(params, lengths_B)
    return cache, sample(logits_BV, lengths_B, seed, sampling), lengths_B


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames=("cache", "lengths_B"))
def _step(params, cache, tokens_B, lengths_B, seed, *, config, numerics, sampling):
    tokens_B = jax.sharding.reshard(tokens_B, spec("B", tokens_B.shape))
    cache, logits_BV = decode(config, numerics, params, cache, tokens_B, lengths_B)
    return cache, sample(logits_BV, lengths_B + 1, seed, sampling), lengths_B + 1


LENGTH_MULTIPLE = 128
"""Cache lengths are rounded up to a multiple of this: the lanes of a TPU register, and the tile of
splash attention.
"""


class Generator:
    """Continues prompts with a trained model. Create and use it while the mesh of `params` is
    active.

    params: nested dict in the layout of `models.decoder.init_params`. eod: the end-of-document
    token. max_length: maximum tokens of a prompt and its continuation, the size of the cache.
    """

    def __init__(
        self, config: ModelConfig, numerics: Numerics, params: dict, eod: int, max_length: int
    ):
        self.cache_length = cache_length(config, params, max_length)
        self.config, self.numerics, self.eod, self.max_length = config, numerics, eod, max_length
        self.params = for_inference(config, numerics, params)

    def generate(
        self,
        prompts: Sequence[np.ndarray | Sequence[int]],
        max_new_tokens: int | Sequence[int],
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        seed: int = 0,
        on_token: Callable[[int, int], bool | None] | None = None,
    ) -> list[np.ndarray]:
        """Returns the new tokens of each prompt, int32, up to `eod` (which is excluded) or
        max_new_tokens, one number or one for each prompt.

        `on_token(row, token)` is called for each token; returning True ends the row. Raises
        UserError naming a prompt that is empty, too long, or outside of the model's vocabulary.
        """
        arrays = [np.asarray(prompt, np.int64) for prompt in prompts]
        limits = (
            [max_new_tokens] * len(arrays)
            if isinstance(max_new_tokens, int)
            else list(max_new_tokens)
        )
        self._check(arrays, limits)
        check_seed(seed)
        static = {"config": self.config, "numerics": self.numerics, "sampling": sampling}
        tokens_BT, lengths_B = self._padded(arrays)
        seed_array = np.uint32(seed)
        cache, tokens_B, lengths_B = _start(
            self.params, tokens_BT, lengths_B, seed_array, cache_length=self.cache_length, **static
        )
        continuations: list[list[int]] = [[] for _ in arrays]
        active = set(range(len(arrays)))
        for left in reversed(range(max(limits))):
            sampled = tokens_B
            if left:
                cache, tokens_B, lengths_B = _step(
                    self.params, cache, tokens_B, lengths_B, seed_array, **static
                )
            tokens = np.asarray(sampled).tolist()
            for row in sorted(active):
                if tokens[row] == self.eod:
                    active.remove(row)
                    continue
                continuations[row].append(tokens[row])
                ended = on_token and on_token(row, tokens[row])
                if ended or len(continuations[row]) == limits[row]:
                    active.remove(row)
            if not active:
                break
        return [np.array(text, np.int32) for text in continuations]

    def _check(self, prompts: list[np.ndarray], limits: list[int]) -> None:
        if not prompts:
            raise UserError("there are no prompts; give at least one.")
        for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            check_new_tokens(limit)
            if prompt.ndim != 1 or not prompt.size:
                raise UserError(
                    f"prompt {number} is empty (shape {prompt.shape}); give at least one token."
                )
            if prompt.min() < 0 or prompt.max() >= self.config.vocab_size:
                raise UserError(
                    f"prompt {number} has tokens from {prompt.min()} to {prompt.max()}, but the "
                    f"model's vocabulary is 0 to {self.config.vocab_size - 1}; use the tokenizer "
                    "that the model was trained with."
                )
            if prompt.size + limit > self.max_length:
                raise UserError(
                    f"prompt {number} has {prompt.size} tokens; with {limit} new tokens "
                    f"it exceeds max_length {self.max_length}; shorten the prompt, reduce "
                    "max_new_tokens, or increase max_length."
                )

    def _padded(self, prompts: list[np.ndarray]) -> tuple[Array, Array]:
        """Returns (tokens_BT, lengths_B), padded.

        T has few distinct values, so that few programs are compiled. B is a multiple of the batch
        shards.
        """
        shortest = LENGTH_MULTIPLE if self.numerics.attention == "splash" else 16
        longest = max(prompt.size for prompt in prompts)
        T = min(
            max(shortest, 2 ** (longest - 1).bit_length()),
            rounded_up(self.max_length, LENGTH_MULTIPLE),
        )
        mesh = jax.sharding.get_mesh()
        B = rounded_up(len(prompts), axis_sizes()["pod"] * axis_sizes()["data"])
        tokens_BT, lengths_B = np.zeros((B, T), np.int32), np.ones(B, np.int32)
        for row, prompt in enumerate(prompts):
            tokens_BT[row, : prompt.size], lengths_B[row] = prompt, prompt.size
        return (
            jax.device_put(tokens_BT, NamedSharding(mesh, spec("BT", (B, T)))),
            jax.device_put(lengths_B, NamedSharding(mesh, P())),
        )


def check_seed(seed: int) -> None:
    """Raises UserError unless the seed has 32 bits."""
    if not 0 <= seed < 2**32:
        raise UserError(f"the seed is {seed}; it must be from 0 to {2**32 - 1}.")


def check_new_tokens(number: int) -> None:
    """Raises UserError unless at least one token is to be generated."""
    if number < 1:
        raise UserError(f"max_new_tokens is {number}; it must be 1 or more.")


DEFAULT_NEW_TOKENS = 200


def new_tokens_that_fit(context: int, prompt: int, requested: int | None) -> int:
    """The number of new tokens after a prompt of `prompt` tokens: as requested, or by default.

    Raises UserError if they exceed the model's context (the length of its training sequences).
    """
    if prompt + (requested or 1) > context:
        raise UserError(
            f"the model's context is {context} tokens; the prompt has {prompt} and max_new_tokens "
            f"is {requested or DEFAULT_NEW_TOKENS}. Shorten the prompt or reduce max_new_tokens."
        )
    return requested or min(DEFAULT_NEW_TOKENS, context - prompt)


def rounded_up(number: int, multiple: int) -> int:
    """Rounds a number up to a multiple."""
    return -(-number // multiple) * multiple


def check_length(config: ModelConfig, max_length: int) -> None:
    """Raises UserError if the model has fewer learned positions than `max_length`."""
    if config.learned_positions and max_length > config.learned_positions:
        raise UserError(
            f"a length of {max_length} tokens exceeds model.learned_positions "
            f"{config.learned_positions}; reduce it."
        )


def cache_length(config: ModelConfig, params: dict, max_length: int) -> int:
    """The length of the cache for texts of `max_length` tokens after a prefix, if there is one.

    Raises UserError if the model has fewer learned positions.
    """
    positions = max_length + int(prefix_counts(params).max())
    check_length(config, positions)
    return rounded_up(positions, LENGTH_MULTIPLE)


def for_inference(config: ModelConfig, numerics: Numerics, params: dict) -> dict:
    """Prepares parameters for inference: quantizes them if the config does, then casts to the
    compute dtype. Idempotent.
    """
    if config.quant.active:
        params = quantize_params(config, numerics, params)
    return in_compute_dtype(params, numerics)


def in_compute_dtype(params: dict, numerics: Numerics) -> dict:
    """Casts the matrices once instead of at every token. Vectors and norm scales, which are applied
    in float32, are unchanged.
    """

    kept = QuantizedWeight | Wrapped

    def cast(path, w):
        if isinstance(w, RowFactors):
            return dataclasses.replace(w, base=cast(path, w.base))
        if isinstance(w, kept):
            return w
        name = path[-1].key
        wide = len(letters_of(name)) == 1 or "_scale_" in name
        return w if wide or w.dtype == numerics.compute else w.astype(numerics.compute)

    return jax.tree_util.tree_map_with_path(cast, params, is_leaf=lambda w: isinstance(w, kept))
