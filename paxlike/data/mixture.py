"""Several token stores read together, each with a weight.

Sequence s of a mixture is a function of (stores, weights, seed, s) alone. Of the first s sequences
at the same weights, each store has its share up to less than one sequence, at every s.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from paxlike.config import ConfigError, DataConfig, TrainConfig
from paxlike.data.manifest import PREPARE_AGAIN
from paxlike.data.manifest_reader import TOKENIZER_FILES
from paxlike.data.store import Store, open_store
from paxlike.data.tokenizer import Tokenizer

PRECISION = 10**6
"""Weights are fractions with at most this denominator, so that a schedule repeats soon."""


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Opened stores and the weights of each phase."""

    stores: dict[str, Store]
    """By the name that the config gives them."""
    phases: tuple[tuple[int, tuple[float, ...]], ...]
    """(first step, weights in the order of `stores`), from step 0 on."""

    @property
    def name(self) -> str:
        return f"the mixture of {', '.join(self.stores)}"

    @property
    def location(self) -> str:
        return "mixture:" + ",".join(store.location for store in self.stores.values())

    @property
    def fingerprint(self) -> str:
        parts = [store.fingerprint for store in self.stores.values()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        return next(iter(self.stores.values())).vocab_size

    @property
    def tokenizer(self) -> Tokenizer:
        return next(iter(self.stores.values())).tokenizer

    @property
    def chat_template(self) -> str | None:
        """That of the stores that have one."""
        return next((s.chat_template for s in self.stores.values() if s.chat_template), None)

    def weights(self, step: int) -> dict[str, float]:
        """Store -> its part of the sequences from this step on; the sum is 1."""
        found = [weights for first, weights in self.phases if first <= step][-1]
        return {name: w / math.fsum(found) for name, w in zip(self.stores, found, strict=True)}


def open_stores(data: DataConfig) -> Mixture:
    """Opens the stores of `data.mixture`. Raises UserError if one has another tokenizer."""
    stores = {name: open_store(name) for name, _ in data.mixture}
    (first, one), *others = stores.items()
    for name, other in others:
        if _tokenizer_files(one) != _tokenizer_files(other):
            raise ConfigError(
                f"the stores of data.mixture have different tokenizers: {first} has "
                f"{one.manifest.tokenizer} with {one.vocab_size} ids, {name} "
                f"{other.manifest.tokenizer} with {other.vocab_size}. {PREPARE_AGAIN}, all with "
                "the same --tokenizer."
            )
    templates = {name: store.chat_template for name, store in stores.items()}
    known = {name: template for name, template in templates.items() if template}
    if len(set(known.values())) > 1:
        raise ConfigError(
            f"the stores of data.mixture have different chat templates: {', '.join(known)}. "
            f"{PREPARE_AGAIN}, all with the same --template."
        )
    return Mixture(stores, data.mixture_phases)


def _tokenizer_files(store: Store) -> dict[str, str]:
    """The content of the tokenizer: name -> sha256."""
    kind = store.manifest.tokenizer
    names = ("tokenizer.json", *TOKENIZER_FILES.get(kind, ()))
    return {name: store.manifest.files[name].sha256 for name in names}


class Schedule:
    """Which store each sequence comes from, at constant weights.

    The quota method of Balinski and Young (The Quota Method of Apportionment, American Mathematical
    Monthly 82, 1975): among the stores whose next sequence does not exceed their share rounded up,
    the one with the largest weight per sequence is next. So every count stays within less than 1 of
    its share. With integer weights of sum P it repeats after P sequences.
    """

    def __init__(self, weights: Sequence[float]):
        self._units = integer_weights(weights)
        self.period = sum(self._units)
        counts = [0] * len(self._units)
        self._order = np.zeros(self.period, np.int16)
        self._before = np.zeros((self.period, len(self._units)), np.int64)
        for s in range(self.period):
            self._before[s] = counts
            allowed = [
                j for j, a in enumerate(self._units) if counts[j] * self.period < a * (s + 1)
            ]
            # Below 1, and at least 1 / PRECISION**2 apart, so that floats order them exactly.
            chosen = min(allowed, key=lambda j: (counts[j] + 1) / self._units[j])
            self._order[s] = chosen
            counts[chosen] += 1

    def counts(self, s: int) -> np.ndarray:
        """int64 [stores]: how many of the first s sequences come from each store."""
        rounds, rest = divmod(s, self.period)
        return rounds * np.array(self._units, np.int64) + self._before[rest]

    def store(self, s: int) -> int:
        """The store that sequence s comes from."""
        return int(self._order[s % self.period])


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest integers with these proportions.

    A weight is the simplest fraction within 1 / PRECISION of its part; if their sum is not 1 or
    their denominator is too large, they are rounded to parts of PRECISION.
    """
    total = sum(map(Fraction, weights))
    parts = [(Fraction(weight) / total).limit_denominator(PRECISION) for weight in weights]
    common = math.lcm(*(part.denominator for part in parts))
    if sum(parts) == 1 and common <= PRECISION:
        return tuple(int(part * common) for part in parts)
    exact = [Fraction(weight) / total * PRECISION for weight in weights]
    units = [int(part) for part in exact]
    by_rest = sorted(range(len(exact)), key=lambda j: units[j] - exact[j])
    for j in by_rest[: PRECISION - sum(units)]:
        units[j] += 1
    divisor = math.gcd(*units)
    return tuple(unit // divisor for unit in units)


class MixedOrder:
    """Maps sequence s of a mixture to (store, number of its sequences before).

    phases: (first sequence, weights), from 0 on.
    """

    def __init__(self, phases: Sequence[tuple[int, Sequence[float]]]):
        self._starts = [start for start, _ in phases]
        schedule = functools.cache(Schedule)
        self._schedules = [schedule(tuple(weights)) for _, weights in phases]
        count = len(phases[0][1])
        self._before = [np.zeros(count, np.int64)]
        for index, (begin, end) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            self._before.append(self._before[-1] + self._schedules[index].counts(end - begin))

    def place(self, s: int) -> tuple[int, int]:
        index, inside = self._phase(s)
        schedule = self._schedules[index]
        store = schedule.store(inside)
        return store, int(self._before[index][store] + schedule.counts(inside)[store])

    def counts(self, s: int) -> np.ndarray:
        """int64 [stores]: how many of the first s sequences come from each store."""
        index, inside = self._phase(s)
        return self._before[index] + self._schedules[index].counts(inside)

    def _phase(self, s: int) -> tuple[int, int]:
        index = int(np.searchsorted(self._starts, s, side="right")) - 1
        return index, s - self._starts[index]


def mixed_order(mixture: Mixture, train: TrainConfig) -> MixedOrder:
    """The order of a run's sequences."""
    return MixedOrder([(train.sequences_before(step), weights) for step, weights in mixture.phases])
