"""Log-probabilities of given tokens, for evaluation.

Batched, on any mesh, without holding all logits in memory.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.config import ModelConfig, UserError
from paxlike.infer.cache import inference_decoder, logits_of
from paxlike.infer.generate import LENGTH_MULTIPLE, check_length, for_inference, rounded_up
from paxlike.nn.collectives import gather, on_devices, specs_of
from paxlike.nn.intervention import row_prompts
from paxlike.nn.numerics import Numerics
from paxlike.nn.rows import prefix_counts, with_rows
from paxlike.parallel.mesh import axis_sizes, spec

Array = jax.Array
POSITIONS_AT_ONCE = 32
"""Number of positions whose logits are in memory at once."""


class Score(NamedTuple):
    logprobs: np.ndarray
    """float32: natural log-probability of each scored token, given all tokens before it."""
    greedy: np.ndarray
    """bool: whether the token is the most likely one."""
    best: np.ndarray
    """int32 [n, alternatives]: the most likely tokens at each position."""
    best_logprobs: np.ndarray


class Scorer:
    """Scores sequences of up to `max_length` + 1 tokens, `batch_size` at a time.

    Create and use it while the mesh of `params` is active.
    """

    def __init__(
        self,
        config: ModelConfig,
        numerics: Numerics,
        params: dict,
        max_length: int,
        batch_size: int = 16,
        alternatives: int = 1,
    ):
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}; it must be 1 or more.")
        check_length(config, max_length + int(prefix_counts(params).max()))
        self.config, self.numerics, self.max_length, self.batch_size = (
            config,
            numerics,
            max_length,
            batch_size,
        )
        self.alternatives = alternatives
        self.params = for_inference(config, numerics, params)

    def score(
        self,
        sequences: Sequence[Sequence[int] | np.ndarray],
        starts: Sequence[int],
        adapter: int = 0,
        prompts: Sequence[int] | None = None,
    ) -> list[Score]:
        """Returns for each sequence the scores of tokens[start:], start >= 1.

        adapter: of all sequences, where the parameters have several (`nn/rows.py`). prompts: the
        lengths of their prompts, in which ReFT changes the stream; by default starts. Raises
        UserError naming a sequence that is too long or outside of the vocabulary.
        """
        arrays = [np.asarray(tokens, np.int64) for tokens in sequences]
        for number, (tokens, start) in enumerate(zip(arrays, starts, strict=True)):
            self._check(number, tokens, start)
        scores: dict[int, Score] = {}
        order = sorted(range(len(arrays)), key=lambda number: -arrays[number].size)
        for first in range(0, len(order), self.batch_size):
            numbers = order[first : first + self.batch_size]
            batch = [arrays[number] for number in numbers]
            lengths = [(prompts or starts)[number] for number in numbers]
            results = self._batch(batch, lengths, adapter)
            for row, number in enumerate(numbers):
                scored = slice(starts[number] - 1, arrays[number].size - 1)
                scores[number] = Score(*(array[row, scored] for array in results))
        return [scores[number] for number in range(len(arrays))]

    def _check(self, number: int, tokens: np.ndarray, start: int) -> None:
        if not 1 <= start <= tokens.size:
            raise UserError(
                f"sequence {number} has {tokens.size} tokens and start {start}; start must be "
                "from 1 to the number of tokens."
            )
        if tokens.size > self.max_length + 1:
            raise UserError(
                f"sequence {number} has {tokens.size} tokens; the maximum is {self.max_length + 1}."
            )
        if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            raise UserError(
                f"sequence {number} has tokens from {tokens.min()} to {tokens.max()}, but the "
                f"model's vocabulary is 0 to {self.config.vocab_size - 1}; use the tokenizer that "
                "the model was trained with."
            )

    def _batch(
        self, arrays: list[np.ndarray], prompts: list[int], adapter: int
    ) -> tuple[np.ndarray, ...]:
        """Returns a score's arrays, [rows, T] or [rows, T, alternatives], for the tokens after the
        first.

        T is a power of two, so that few programs are compiled.
        """
        shortest = LENGTH_MULTIPLE if self.numerics.attention == "splash" else 16
        longest = max(array.size for array in arrays) - 1
        T = max(shortest, 2 ** max(longest - 1, 0).bit_length())
        B = rounded_up(self.batch_size, axis_sizes()["pod"] * axis_sizes()["data"])
        tokens_BT = np.zeros((B, T + 1), np.int32)
        prompts_B = np.ones(B, np.int32)
        for row, (array, length) in enumerate(zip(arrays, prompts, strict=True)):
            tokens_BT[row, : array.size], prompts_B[row] = array, length
        mesh = jax.sharding.get_mesh()
        sharding = NamedSharding(mesh, spec("BT", (B, T)))
        inputs, targets = (
            jax.device_put(part, sharding) for part in (tokens_BT[:, :-1], tokens_BT[:, 1:])
        )
        static = {
            "config": self.config,
            "numerics": self.numerics,
            "alternatives": self.alternatives,
        }
        rows = NamedSharding(mesh, spec("B", (B,)))
        lengths_B = jax.device_put(prompts_B, rows)
        params = with_rows(self.params, jax.device_put(np.full(B, adapter, np.int32), rows))
        results = _score(params, inputs, targets, lengths_B, **static)
        return tuple(np.asarray(array) for array in results)


@functools.partial(jax.jit, static_argnames=("config", "numerics", "alternatives"))
def _score(params, tokens_BT, targets_BT, prompts_B, *, config, numerics, alternatives):
    def device(params, tokens, targets, prompts):
        model = inference_decoder(config, numerics, params)
        x_BTD = model(tokens, prompts=row_prompts(*tokens.shape, prompts))
        x_BTD, logits = gather(x_BTD, "model", 2), logits_of(model)

        def at(position):
            x_BD, target_B = position
            logits_BV = logits(x_BD)
            picked_B = jnp.take_along_axis(logits_BV, target_B[:, None], axis=1)[:, 0]
            total_B = jax.nn.logsumexp(logits_BV, axis=1)
            highest, best = jax.lax.top_k(logits_BV, alternatives)
            return picked_B - total_B, best[:, 0] == target_B, best, highest - total_B[:, None]

        positions = x_BTD.swapaxes(0, 1), targets.swapaxes(0, 1)
        results = jax.lax.map(at, positions, batch_size=POSITIONS_AT_ONCE)
        return tuple(gather(gather(array.swapaxes(0, 1), "data", 0), "pod", 0) for array in results)

    places, rows = spec("BT", tokens_BT.shape), spec("B", prompts_B.shape)
    specs = specs_of(params), places, places, rows
    run = on_devices(device, specs, (P(),) * len(Score._fields))
    return run(params, tokens_BT, targets_BT, prompts_B)
