"""The batches of a mixture. As for one store, batch k is computed from k alone."""

import sys
from collections.abc import Callable, Iterator

import numpy as np

from paxlike.config import DataConfig, TrainConfig
from paxlike.data.batch import Batch
from paxlike.data.grain_source import (
    RowsOf,
    ValidationBatches,
    checked_rows,
    endless_order,
    read_ahead,
)
from paxlike.data.mixture import Mixture, mixed_order
from paxlike.data.sequences import Sequences


class MixtureBatches:
    """The training splits of several stores, each repeated without end and shuffled differently in
    each epoch. Raises as `TrainBatches`.
    """

    def __init__(self, mixture: Mixture, data: DataConfig, train: TrainConfig):
        self._train, self._names = train, list(mixture.stores)
        self._sequences = [Sequences(store, data, "train") for store in mixture.stores.values()]
        self._orders = [
            endless_order(len(one), (data.seed + index) % 2**32)
            for index, one in enumerate(self._sequences)
        ]
        self._mixed = mixed_order(mixture, train)

    def batch_size(self, k: int) -> int:
        """Sequences of batch k, over all hosts."""
        return self._train.batch_size_at(k)

    def epochs(self, k: int) -> dict[str, float]:
        """Store -> how many times it has been read before batch k."""
        counts = self._mixed.counts(self._train.sequences_before(k)).tolist()
        return {
            name: count / len(one)
            for name, count, one in zip(self._names, counts, self._sequences, strict=True)
        }

    def read_batch(self, k: int, rows: np.ndarray | None = None) -> Batch:
        """The given rows of batch k, in the order given. None: all rows."""
        start = self._train.sequences_before(k)
        places = [self._mixed.place(start + row) for row in checked_rows(rows, self.batch_size(k))]
        parts = [
            self._sequences[store].read([self._orders[store][number]]) for store, number in places
        ]
        tokens, targets, segments = zip(*parts, strict=True)
        return Batch(
            np.concatenate(tokens),
            np.concatenate(targets),
            None if segments[0] is None else np.concatenate(segments),
        )

    def batches(
        self,
        start: int = 0,
        rows_of: RowsOf = np.arange,
        number: Callable[[int], int] = lambda k: k,
    ) -> Iterator[Batch]:
        """Batches number(start), number(start + 1), … without end, prefetched by threads."""

        def read(k: int) -> Batch:
            return self.read_batch(number(k), rows_of(self.batch_size(number(k))))

        return read_ahead(start, sys.maxsize, read)


def validation_parts(
    mixture: Mixture, data: DataConfig, train: TrainConfig
) -> dict[str, ValidationBatches]:
    """The validation batches of each store, by its name."""
    return {name: ValidationBatches(one, data, train) for name, one in mixture.stores.items()}
