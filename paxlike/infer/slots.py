"""Continuous batching: a fixed number of rows that are generated together, each beginning and ending when its own text does.

`admit` reads new prompts into free rows while the others wait; `step` makes one more token in every row. What a row becomes depends on
its prompt, its settings and its seed, not on the others (up to rounding, where a batch is computed in another order).
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
from paxlike.infer.cache import Cache, decode, prefill
from paxlike.infer.generate import LENGTH_MULTIPLE, for_inference, rounded_up
from paxlike.nn.einsum import gather, on_devices
from paxlike.nn.weight import Numerics
from paxlike.parallel.mesh import axis_sizes, spec

Array = jax.Array
ALTERNATIVES = 5
"""Most likely tokens that are told with each token."""


class Settings(NamedTuple):
    """How a row's tokens are drawn."""

    temperature: float = 0.0
    """0: the most likely token."""
    top_p: float = 1.0
    """Only the fewest most likely tokens whose probabilities sum to p or more."""
    seed: int = 0


class Drawn(NamedTuple):
    """A token of each row, numpy. Logarithms are of the model's own probabilities, before temperature and top_p."""

    token: np.ndarray
    logprob: np.ndarray
    best: np.ndarray
    """[rows, ALTERNATIVES] tokens."""
    best_logprobs: np.ndarray


class Slots:
    """Rows of a trained model's generation. Make and use it with the mesh of `params` in force, from one thread.

    Args:
      rows: how many at once; rounded up to what the mesh divides.
      max_length: tokens of a prompt and its continuation.
    """

    def __init__(self, config: ModelConfig, numerics: Numerics, params: dict, rows: int, max_length: int):
        self.config, self.numerics, self.max_length = config, numerics, max_length
        self.params = for_inference(config, numerics, params)
        self.rows = rounded_up(rows, axis_sizes()["pod"] * axis_sizes()["data"])
        self._static = {"config": config, "numerics": numerics}
        self._cache: Cache | None = None
        self._tokens = np.zeros(self.rows, np.int32)
        self._lengths = np.zeros(self.rows, np.int32)
        self._settings = Settings(*(np.zeros(self.rows, kind) for kind in (np.float32, np.float32, np.uint32)))

    def admit(self, prompts: Mapping[int, Sequence[int]], settings: Mapping[int, Settings]) -> Drawn:
        """Reads prompts (row -> tokens, at least one each) into rows that are free, and draws the token after each.

        Of the result only those rows count.
        """
        shortest = LENGTH_MULTIPLE if self.numerics.attention == "splash" else 16
        longest = max(len(prompt) for prompt in prompts.values())
        T = min(max(shortest, 2 ** (longest - 1).bit_length()), self._cache_length)
        tokens_BT, lengths_B, fresh_B = (
            np.zeros((self.rows, T), np.int32),
            np.ones(self.rows, np.int32),
            np.zeros(self.rows, bool),
        )
        for row, prompt in prompts.items():
            tokens_BT[row, : len(prompt)], lengths_B[row], fresh_B[row] = prompt, len(prompt), True
            for array, value in zip(self._settings, settings[row], strict=True):
                array[row] = value
        self._lengths = np.where(fresh_B, lengths_B, self._lengths)
        read = _admit if self._cache is not None else _begin
        old = () if self._cache is None else (self._cache, self._put(fresh_B))
        arrays = (*self._put((tokens_BT, lengths_B)), *old, self._put(self._settings))
        self._cache, drawn = read(self.params, *arrays, cache_length=self._cache_length, **self._static)
        drawn = Drawn(*map(np.asarray, drawn))
        self._tokens = np.where(fresh_B, drawn.token, self._tokens)
        return drawn

    def step(self) -> Drawn:
        """One more token in every row that is not free; the token drawn before is read first."""
        inputs = self._put((self._tokens, self._lengths, self._settings))
        self._cache, drawn = _step(self.params, self._cache, *inputs, **self._static)
        drawn = Drawn(*map(np.asarray, drawn))
        busy = self._lengths > 0
        self._tokens, self._lengths = np.where(busy, drawn.token, 0), self._lengths + busy
        return drawn

    def free(self, row: int) -> None:
        """The row's text has ended."""
        self._lengths[row] = self._tokens[row] = 0

    @property
    def _cache_length(self) -> int:
        return rounded_up(self.max_length, LENGTH_MULTIPLE)

    def _put(self, arrays):
        mesh = jax.sharding.get_mesh()
        return jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, spec("BT"[: a.ndim], a.shape))), arrays)


_STATIC = ("config", "numerics")


@functools.partial(jax.jit, static_argnames=(*_STATIC, "cache_length"))
def _begin(params, tokens_BT, lengths_B, settings, *, config, numerics, cache_length):
    cache, logits_BV = prefill(config, numerics, params, tokens_BT, lengths_B, cache_length)
    return cache, _draw(logits_BV, lengths_B, settings)


@functools.partial(jax.jit, static_argnames=(*_STATIC, "cache_length"), donate_argnames=("cache",))
def _admit(params, tokens_BT, lengths_B, cache, fresh_B, settings, *, config, numerics, cache_length):
    new, logits_BV = prefill(config, numerics, params, tokens_BT, lengths_B, cache_length)

    def device(new, old, fresh):
        return Cache(*(jnp.where(fresh[None, :, None, None, None], a, b) for a, b in zip(new, old, strict=True)))

    place = P(None, *spec("BSKH", cache.k_LBSKH.shape[1:]))
    places = Cache(place, place)
    merged = on_devices(device, (places, places, P(place[1])), places)(new, cache, fresh_B)
    return merged, _draw(logits_BV, lengths_B, settings)


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames=("cache",))
def _step(params, cache, tokens_B, lengths_B, settings, *, config, numerics):
    cache, logits_BV = decode(config, numerics, params, cache, tokens_B, lengths_B)
    return cache, _draw(logits_BV, lengths_B + 1, settings)


def _draw(logits_BV: Array, places_B: Array, settings: Settings) -> Drawn:
    """Tokens for the positions places_B, whole on every device. A draw is a function of (logits, place, settings)."""

    def one(logits_V, place, setting):
        logprobs_V = jax.nn.log_softmax(logits_V)
        best_logprobs, best = jax.lax.top_k(logprobs_V, ALTERNATIVES)
        scaled, order = jax.lax.top_k(logits_V / jnp.maximum(setting.temperature, 1e-6), logits_V.shape[0])
        probabilities = jax.nn.softmax(scaled)
        kept = jnp.cumsum(probabilities) - probabilities < setting.top_p
        key = jax.random.fold_in(jax.random.key(setting.seed), place)
        drawn = order[jax.random.categorical(key, jnp.where(kept, scaled, -jnp.inf))]
        token = jnp.where(setting.temperature == 0, best[0], drawn)
        return Drawn(token.astype(jnp.int32), logprobs_V[token], best, best_logprobs)

    def device(logits, places, settings):
        drawn = jax.vmap(one)(logits, places, settings)
        return jax.tree.map(lambda array: gather(gather(array, "data", 0), "pod", 0), drawn)

    (rows,) = spec("B", places_B.shape)
    specs = (P(rows, None), P(rows), Settings(*(P(rows),) * len(Settings._fields)))
    return on_devices(device, specs, Drawn(*(P(),) * len(Drawn._fields)))(logits_BV, places_B, settings)
