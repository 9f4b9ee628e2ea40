"""Log-probabilities of given tokens: what an evaluation asks of a model. Batched, on any mesh, without whole logits in memory."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.config import ModelConfig, UserError
from paxlike.infer.cache import inference_decoder
from paxlike.infer.generate import LENGTH_MULTIPLE, for_inference, rounded_up
from paxlike.nn.einsum import gather, gather_weight, on_devices
from paxlike.nn.weight import Numerics
from paxlike.parallel.mesh import axis_sizes, spec, weight_spec

Array = jax.Array
POSITIONS_AT_ONCE = 32
"""Positions whose logits are in memory together."""


class Score(NamedTuple):
    logprobs: np.ndarray
    """float32: natural logarithms of the probabilities of the scored tokens, each after all before it."""
    greedy: np.ndarray
    """bool: whether the token is the most likely one."""
    best: np.ndarray
    """int32 [n, alternatives]: the most likely tokens in its place."""
    best_logprobs: np.ndarray


class Scorer:
    """Scores sequences of up to `max_length` + 1 tokens, `batch_size` at a time. Use it with the mesh of `params` in force."""

    def __init__(
        self, config: ModelConfig, numerics: Numerics, params: dict, max_length: int, batch_size: int = 16, alternatives: int = 1
    ):  # fmt: skip
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}; it must be 1 or more.")
        self.config, self.numerics, self.max_length, self.batch_size = config, numerics, max_length, batch_size
        self.alternatives = alternatives
        self.params = for_inference(config, numerics, params)

    def score(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Score]:
        """For each sequence the scores of tokens[start:], start >= 1.

        Raises UserError naming one that is too long or not of the vocabulary.
        """
        arrays = [np.asarray(tokens, np.int64) for tokens in sequences]
        for number, (tokens, start) in enumerate(zip(arrays, starts, strict=True)):
            self._check(number, tokens, start)
        scores: list[Score | None] = [None] * len(arrays)
        order = sorted(range(len(arrays)), key=lambda number: -arrays[number].size)
        for first in range(0, len(order), self.batch_size):
            numbers = order[first : first + self.batch_size]
            found = self._batch([arrays[number] for number in numbers])
            for row, number in enumerate(numbers):
                scored = slice(starts[number] - 1, arrays[number].size - 1)
                scores[number] = Score(*(array[row, scored] for array in found))
        return scores

    def _check(self, number: int, tokens: np.ndarray, start: int) -> None:
        if not 1 <= start <= tokens.size:
            raise UserError(
                f"sequence {number} of {tokens.size} tokens is to be scored from {start}; it must be 1 or later."
            )
        if tokens.size > self.max_length + 1:
            raise UserError(f"sequence {number} has {tokens.size} tokens; at most {self.max_length + 1} can be scored.")
        if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            raise UserError(
                f"sequence {number} has tokens from {tokens.min()} to {tokens.max()}, but the model's vocabulary is 0 to "
                f"{self.config.vocab_size - 1}; use the tokenizer that the model was trained with."
            )

    def _batch(self, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        """A score's arrays, [rows, T] and [rows, T, alternatives], of the tokens after the first. Few shapes, so that few programs are
        compiled: T is a power of two."""
        shortest = LENGTH_MULTIPLE if self.numerics.attention == "splash" else 16
        longest = max(array.size for array in arrays) - 1
        T = max(shortest, 2 ** max(longest - 1, 0).bit_length())
        B = rounded_up(self.batch_size, axis_sizes()["pod"] * axis_sizes()["data"])
        tokens_BT = np.zeros((B, T + 1), np.int32)
        for row, array in enumerate(arrays):
            tokens_BT[row, : array.size] = array
        place = NamedSharding(jax.sharding.get_mesh(), spec("BT", (B, T)))
        inputs, targets = (jax.device_put(part, place) for part in (tokens_BT[:, :-1], tokens_BT[:, 1:]))
        static = {"config": self.config, "numerics": self.numerics, "alternatives": self.alternatives}
        found = _score(self.params, inputs, targets, **static)
        return tuple(np.asarray(array) for array in found)


@functools.partial(jax.jit, static_argnames=("config", "numerics", "alternatives"))
def _score(params, tokens_BT, targets_BT, *, config, numerics, alternatives):
    model = inference_decoder(config, numerics, params)
    x_BTD = model(tokens_BT)
    letters, weight, scale = model.head()
    x_spec, targets_spec, stored = (
        spec("BTD", x_BTD.shape),
        spec("BT", targets_BT.shape),
        weight_spec(letters, weight.shape),
    )

    def device(x, targets, weight):
        used = gather_weight(weight, tuple(stored), x.dtype)
        contracted = (((1,), (letters.index("D"),)), ((), ()))

        def at(position):
            x_BD, target_B = position
            logits_BV = jax.lax.dot_general(x_BD, used, contracted, preferred_element_type=jnp.float32)
            logits_BV = gather(logits_BV, "model", 1)[:, : config.vocab_size] * scale
            picked_B = jnp.take_along_axis(logits_BV, target_B[:, None], axis=1)[:, 0]
            total_B = jax.nn.logsumexp(logits_BV, axis=1)
            highest, best = jax.lax.top_k(logits_BV, alternatives)
            return picked_B - total_B, best[:, 0] == target_B, best, highest - total_B[:, None]

        positions = gather(x, "model", 2).swapaxes(0, 1), targets.swapaxes(0, 1)
        found = jax.lax.map(at, positions, batch_size=POSITIONS_AT_ONCE)
        return tuple(gather(gather(array.swapaxes(0, 1), "data", 0), "pod", 0) for array in found)

    return on_devices(device, (x_spec, targets_spec, stored), (P(),) * len(Score._fields))(x_BTD, targets_BT, weight)
