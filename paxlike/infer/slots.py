"""Continuous batching: a fixed number of batch slots that generate together and end independently.

`admit` reads new prompts into free slots while the others wait; `step` makes one more token in
every slot. A slot's text depends on its prompt, its settings and its seed, not on other slots (up
to rounding, if a batch is computed in a different order).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.config import ModelConfig
from paxlike.infer.cache import cache_specs, cached_lengths, decode, prefill
from paxlike.infer.generate import LENGTH_MULTIPLE, cache_length, for_inference, rounded_up
from paxlike.models.decoder import Caches
from paxlike.nn.collectives import Leaf, gather, on_devices
from paxlike.nn.numerics import Numerics
from paxlike.nn.rows import prefix_counts, with_rows
from paxlike.parallel.mesh import axis_sizes, spec

Array = jax.Array
ALTERNATIVES = 5
"""Number of most likely tokens reported with each token."""


class Settings(NamedTuple):
    """How a slot's tokens are sampled: its two floats and integer, or the arrays of all slots."""

    temperature: Leaf = 0.0
    """0 takes the most likely token."""
    top_p: Leaf = 1.0
    """Sample from the smallest set of most likely tokens whose probabilities sum to at least p."""
    seed: Leaf = 0


class Drawn(NamedTuple):
    """One token per slot, as numpy arrays. Log-probabilities are the model's, before temperature
    and top_p.
    """

    token: np.ndarray
    logprob: np.ndarray
    best: np.ndarray
    """[rows, ALTERNATIVES] tokens."""
    best_logprobs: np.ndarray


class Slots:
    """Batch slots of a trained model. Create and use it while the mesh of `params` is active, from
    one thread.

    rows: number of slots, rounded up to a multiple of the batch shards. max_length: maximum tokens
    of a prompt and its continuation.
    """

    def __init__(
        self, config: ModelConfig, numerics: Numerics, params: dict, rows: int, max_length: int
    ):
        self._cache_length = cache_length(config, params, max_length)
        self.config, self.numerics, self.max_length = config, numerics, max_length
        self.params = for_inference(config, numerics, params)
        self.rows = rounded_up(rows, axis_sizes()["pod"] * axis_sizes()["data"])
        self._static = {"config": config, "numerics": numerics}
        self._cache: Caches | None = None
        self._before = prefix_counts(params)
        self._adapters = np.zeros(self.rows, np.int32)
        self._with_rows = self.params
        self._tokens = np.zeros(self.rows, np.int32)
        self._lengths = np.zeros(self.rows, np.int32)
        self._settings = Settings(
            *(np.zeros(self.rows, kind) for kind in (np.float32, np.float32, np.uint32))
        )

    def admit(
        self,
        prompts: Mapping[int, Sequence[int]],
        settings: Mapping[int, Settings],
        adapters: Mapping[int, int] | None = None,
    ) -> Drawn:
        """Reads prompts (row -> at least one token) into free rows, and samples the token after
        each.

        adapters: the rows' adapters, by number (`nn/rows.py`); by default the base. Only those rows
        of the result are meaningful.
        """
        shortest = LENGTH_MULTIPLE if self.numerics.attention == "splash" else 16
        longest = max(len(prompt) for prompt in prompts.values())
        T = min(max(shortest, 2 ** (longest - 1).bit_length()), self._cache_length)
        tokens_BT, lengths_B, admitted_B = (
            np.zeros((self.rows, T), np.int32),
            np.ones(self.rows, np.int32),
            np.zeros(self.rows, bool),
        )
        for row, prompt in prompts.items():
            tokens_BT[row, : len(prompt)], lengths_B[row], admitted_B[row] = (
                prompt,
                len(prompt),
                True,
            )
            for array, value in zip(self._settings, settings[row], strict=True):
                array[row] = value
            self._adapters[row] = (adapters or {}).get(row, 0)
        self._with_rows = with_rows(self.params, self._put(self._adapters))
        positions_B = lengths_B + self._before[self._adapters]
        self._lengths = np.where(admitted_B, positions_B, self._lengths)
        read = _admit if self._cache is not None else _begin
        old = () if self._cache is None else (self._cache, self._put(admitted_B))
        arrays = (*self._put((tokens_BT, lengths_B)), *old, self._put(self._settings))
        self._cache, drawn = read(
            self._with_rows, *arrays, cache_length=self._cache_length, **self._static
        )
        drawn = Drawn(*map(np.asarray, drawn))
        self._tokens = np.where(admitted_B, drawn.token, self._tokens)
        return drawn

    def step(self) -> Drawn:
        """Reads the last token of every row in use and samples one more."""
        inputs = self._put((self._tokens, self._lengths, self._settings))
        self._cache, drawn = _step(self._with_rows, self._cache, *inputs, **self._static)
        drawn = Drawn(*map(np.asarray, drawn))
        busy = self._lengths > 0
        self._tokens, self._lengths = np.where(busy, drawn.token, 0), self._lengths + busy
        return drawn

    def free(self, row: int) -> None:
        """Frees a row whose text has ended."""
        self._lengths[row] = self._tokens[row] = 0

    def _put(self, arrays):
        mesh = jax.sharding.get_mesh()
        return jax.tree.map(
            lambda a: jax.device_put(a, NamedSharding(mesh, spec("BT"[: a.ndim], a.shape))), arrays
        )


_STATIC = ("config", "numerics")


@functools.partial(jax.jit, static_argnames=(*_STATIC, "cache_length"))
def _begin(params, tokens_BT, lengths_B, settings, *, config, numerics, cache_length):
    cache, logits_BV = prefill(config, numerics, params, tokens_BT, lengths_B, cache_length)
    return cache, _draw(logits_BV, cached_lengths(params, lengths_B), settings)


@functools.partial(jax.jit, static_argnames=(*_STATIC, "cache_length"), donate_argnames=("cache",))
def _admit(
    params, tokens_BT, lengths_B, cache, admitted_B, settings, *, config, numerics, cache_length
):
    new, logits_BV = prefill(config, numerics, params, tokens_BT, lengths_B, cache_length)

    def device(new, old, admitted):
        def merged(a, b):
            return jnp.where(admitted.reshape(1, -1, *(1,) * (a.ndim - 2)), a, b)

        return jax.tree.map(merged, new, old)

    specs = cache_specs(config, lengths_B.shape[0])
    rows = spec("B", lengths_B.shape)
    merged = on_devices(device, (specs, specs, rows), specs)(new, cache, admitted_B)
    return merged, _draw(logits_BV, cached_lengths(params, lengths_B), settings)


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames=("cache",))
def _step(params, cache, tokens_B, lengths_B, settings, *, config, numerics):
    cache, logits_BV = decode(config, numerics, params, cache, tokens_B, lengths_B)
    return cache, _draw(logits_BV, lengths_B + 1, settings)


def _draw(logits_BV: Array, positions_B: Array, settings: Settings) -> Drawn:
    """Samples tokens for positions_B, replicated on every device. A sample is a function of
    (logits, position, settings).
    """

    def one(logits_V, position, setting):
        logprobs_V = jax.nn.log_softmax(logits_V)
        best_logprobs, best = jax.lax.top_k(logprobs_V, ALTERNATIVES)
        scaled, order = jax.lax.top_k(
            logits_V / jnp.maximum(setting.temperature, 1e-6), logits_V.shape[0]
        )
        probabilities = jax.nn.softmax(scaled)
        before = jnp.cumsum(probabilities) - probabilities
        kept = (before < setting.top_p) | (before == 0)  # top_p 0 keeps the most likely token
        key = jax.random.fold_in(jax.random.key(setting.seed), position)
        drawn = order[jax.random.categorical(key, jnp.where(kept, scaled, -jnp.inf))]
        token = jnp.where(setting.temperature == 0, best[0], drawn)
        return Drawn(token.astype(jnp.int32), logprobs_V[token], best, best_logprobs)

    def device(logits, positions, settings):
        drawn = jax.vmap(one)(logits, positions, settings)
        return jax.tree.map(lambda array: gather(gather(array, "data", 0), "pod", 0), drawn)

    (rows,) = spec("B", positions_B.shape)
    specs = (P(rows, None), P(rows), P(rows))
    return on_devices(device, specs, P())(logits_BV, positions_B, settings)
