"""Which sequences are in batch k, and prefetching them. Mixtures: `mixture_batches.py`.

The content of batch k is a function of (store, seed, k) alone: it does not depend on the hosts, the
mesh or earlier batches. So a run resumes, rewinds and skips batches by computing k.
"""

import sys
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from paxlike.config import DataConfig, TrainConfig
from paxlike.data.batch import Batch
from paxlike.data.sequences import Sequences
from paxlike.data.store import Store

RowsOf = Callable[[int], np.ndarray]
"""Maps the size of a batch to its rows that this host reads."""
_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


class TrainBatches:
    """The training split, repeated without end and shuffled differently in each epoch.

    Batch k has the sequences `train.sequences_before(k)` … + `train.batch_size_at(k)` of the
    shuffled order, so every sequence is read once per epoch even while the batch size ramps up.

    Raises ConfigError if the packing does not match, UserError if there is no complete sequence.
    """

    def __init__(self, store: Store, data: DataConfig, train: TrainConfig):
        self.store = store
        self.sequences = Sequences(store, data, "train")
        self._train = train
        self._order = endless_order(len(self.sequences), data.seed)

    def batch_size(self, k: int) -> int:
        """Sequences of batch k, over all hosts."""
        return self._train.batch_size_at(k)

    def read_batch(self, k: int, rows: np.ndarray | None = None) -> Batch:
        """The given rows of batch k, in the order given. None: all rows."""
        start = self._train.sequences_before(k)
        return self.sequences.read(
            [self._order[start + row] for row in checked_rows(rows, self.batch_size(k))]
        )

    def batches(
        self,
        start: int = 0,
        rows_of: RowsOf = np.arange,
        number: Callable[[int], int] = lambda k: k,
    ) -> Iterator[Batch]:
        """Batches number(start), number(start + 1), … without end, prefetched by Grain's
        threads.
        """

        def read(k: int) -> Batch:
            return self.read_batch(number(k), rows_of(self.batch_size(number(k))))

        return read_ahead(start, sys.maxsize, read)


class ValidationBatches:
    """The validation split in batches of `train.batch_size`: every sequence once, in a fixed order.

    The order is shuffled, so that the first few batches are a fair sample of the split. The last
    batch may have rows of padding without targets (-1). Raises as `TrainBatches`.
    """

    def __init__(self, store: Store, data: DataConfig, train: TrainConfig):
        self.store = store
        self.sequences = Sequences(store, data, "validation")
        self._size = train.batch_size
        self._order = grain.MapDataset.range(len(self.sequences)).seed(0).shuffle()

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.sequences) // self._size)

    def read_batch(self, k: int, rows: np.ndarray | None = None) -> Batch:
        """The given rows of batch k, in the order given. None: all rows.

        Raises IndexError if k is not a batch of the split.
        """
        if not 0 <= k < len(self):
            raise IndexError(f"validation batch {k} is not in 0 … {len(self) - 1}")
        places = [k * self._size + row for row in checked_rows(rows, self._size)]
        return self.sequences.read(
            [self._order[place] if place < len(self._order) else -1 for place in places]
        )

    def batches(self, count: int, rows_of: RowsOf = np.arange) -> Iterator[Batch]:
        """The first `count` batches, or all if there are fewer, prefetched by Grain's threads."""
        return read_ahead(
            0, min(count, len(self)), lambda k: self.read_batch(k, rows_of(self._size))
        )


def endless_order(count: int, seed: int) -> Sequence[int]:
    """The numbers 0 … count - 1 without end, shuffled differently in each epoch."""
    return grain.MapDataset.range(count).seed(seed).shuffle().repeat()


def checked_rows(rows: np.ndarray | None, size: int) -> list[int]:
    """The rows of a batch; None: all. Raises IndexError if it has no such row."""
    rows = np.arange(size) if rows is None else np.asarray(rows)
    if len(rows) and not 0 <= rows.min() <= rows.max() < size:
        raise IndexError(f"rows {rows.min()} … {rows.max()} exceed a batch of {size}")
    return rows.tolist()


def read_ahead(start: int, stop: int, read: Callable[[int], Batch]) -> Iterator[Batch]:
    """read(start), …, read(stop - 1), prefetched by Grain's threads."""
    ahead = iter(grain.MapDataset.range(start, stop).map(read).to_iter_dataset(_AHEAD))
    try:
        yield from ahead
    finally:
        # Otherwise its threads keep reading while the program exits.
        ahead.close()
