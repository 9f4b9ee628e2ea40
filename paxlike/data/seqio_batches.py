"""Batches straight from a Task or Mixture of seqio.

Batch k is a function of (mixture, seed, k), on any number of hosts: each reads the whole stream and keeps its rows. There is no way to
batch k but past those before it: a resumed run reads them again and drops them. Where that is too slow, write a store with
`paxlike data materialise`.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from paxlike.config import DataConfig, TrainConfig, UserError
from paxlike.data.batch import Batch
from paxlike.data.progress import SECONDS_A_LINE, say
from paxlike.data.seqio_mixture import Document, SeqioMixture
from paxlike.data.sequences import targets_within

RowsOf = Callable[[int], np.ndarray]
_OPEN_ROWS = 16


class Row(NamedTuple):
    """int32 [T] each; `segments` is None for packing split."""

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray | None


class SeqioTrainBatches:
    """The training stream in batches, endless. The interface is that of `grain_source.TrainBatches`."""

    def __init__(self, mixture: SeqioMixture, data: DataConfig, train: TrainConfig):
        self._mixture, self._data, self._train = mixture, data, train

    def batch_size(self, k: int) -> int:
        """Sequences of batch k, over all hosts."""
        return self._train.batch_size_at(k)

    def batches(
        self, start: int = 0, rows_of: RowsOf = np.arange, number: Callable[[int], int] = lambda k: k
    ) -> Iterator[Batch]:
        """Batches number(start), number(start + 1), … without end; `number` rises. Raises UserError where the stream ends."""
        rows = packed(self._mixture.training(self._data.seed), self._data)
        read = 0
        for k in map(number, itertools.count(start)):
            first = self._train.sequences_before(k)
            _drop(rows, first - read, self._mixture.name)
            size = self.batch_size(k)
            chosen = list(itertools.islice(rows, size))
            if len(chosen) < size:
                raise _ended(self._mixture.name, first + len(chosen))
            read = first + size
            yield batch_of(chosen, rows_of(size), self._data)


class SeqioValidationBatches:
    """The validation documents in batches of `train.batch_size`, the last one filled up with nothing to predict."""

    def __init__(self, mixture: SeqioMixture, data: DataConfig, train: TrainConfig):
        self._mixture, self._data, self._size = mixture, data, train.batch_size
        if next(packed(mixture.validation(), data), None) is None:
            raise UserError(
                f"{mixture.name} has nothing to validate on: its split 'validation' is empty, or it has none and all training "
                "documents are the same one. Add examples."
            )

    def batches(self, count: int, rows_of: RowsOf = np.arange) -> Iterator[Batch]:
        """The first `count` batches (fewer where there are no more)."""
        rows = packed(self._mixture.validation(), self._data)
        for _ in range(count):
            if not (read := list(itertools.islice(rows, self._size))):
                return
            yield batch_of(read, rows_of(self._size), self._data)


def _drop(rows: Iterator[Row], count: int, name: str) -> None:
    """Reads on over `count` rows, and tells of it where it takes long."""
    begin = shown = time.monotonic()
    for done in range(count):
        if next(rows, None) is None:
            raise _ended(name, done)
        if time.monotonic() - shown >= SECONDS_A_LINE:
            shown = time.monotonic()
            rate = (done + 1) / (shown - begin)
            say(
                f"reading {name} again up to where the run goes on: {done + 1:,} of {count:,} sequences, {rate:,.0f} a second"
            )


def _ended(name: str, sequences: int) -> UserError:
    return UserError(
        f"{name} ended after {sequences:,} sequences, but training reads a split again and again: its source or a preprocessor "
        "must not end for good."
    )


def batch_of(rows: list[Row], chosen: np.ndarray, data: DataConfig) -> Batch:
    """The rows of those numbers; a number beyond the last has nothing to predict."""
    length = data.sequence_length
    nothing = Row(np.zeros(length, np.int32), np.full(length, -1, np.int32), np.zeros(length, np.int32))
    picked = [rows[number] if number < len(rows) else nothing for number in chosen]
    stacked = [
        np.stack(parts) if len(parts) else np.zeros((0, length), np.int32)
        for parts in ([row[i] for row in picked] for i in range(2))
    ]
    if data.packing == "split":
        return Batch(*stacked, None)
    return Batch(*stacked, np.stack([row.segments for row in picked]) if picked else np.zeros((0, length), np.int32))


def packed(documents: Iterable[Document], data: DataConfig) -> Iterator[Row]:
    """Sequences of `data.sequence_length` tokens, as `data.packing` says; the last ones may be filled up with nothing to predict."""
    return (split_rows if data.packing == "split" else whole_rows)(documents, data.sequence_length)


def split_rows(documents: Iterable[Document], length: int) -> Iterator[Row]:
    """Documents one after the other, cut every `length` tokens; a sequence's targets are the same a token later."""
    parts, held = [], 0
    for document in documents:
        parts.append(document)
        held += len(document.tokens)
        if held <= length:
            continue
        tokens, learned = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        end = (len(tokens) - 1) // length * length
        for begin in range(0, end, length):
            after = slice(begin + 1, begin + length + 1)
            yield Row(
                tokens[begin : begin + length], np.where(learned[after], tokens[after], -1).astype(np.int32), None
            )
        parts, held = [Document(tokens[end:], learned[end:])], len(tokens) - end
    if held > 1:
        tokens, learned = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        row = Row(np.zeros(length, np.int32), np.full(length, -1, np.int32), None)
        row.tokens[: held - 1], row.targets[: held - 1] = tokens[:-1], np.where(learned[1:], tokens[1:], -1)
        yield row


def whole_rows(documents: Iterable[Document], length: int) -> Iterator[Row]:
    """Each document in one row, cut where it is longer: into the fullest of a few open rows that holds it."""
    rows: list[list[Document]] = []
    room: list[int] = []
    for document in documents:
        for begin in range(0, len(document.tokens), length):
            piece = Document(*(array[begin : begin + length] for array in document))
            size = len(piece.tokens)
            fitting = [row for row, free in enumerate(room) if free >= size]
            if fitting:
                row = min(fitting, key=room.__getitem__)
            else:
                if len(rows) == _OPEN_ROWS:
                    fullest = room.index(min(room))
                    yield _row(rows.pop(fullest), length)
                    room.pop(fullest)
                rows.append([])
                room.append(length)
                row = len(rows) - 1
            rows[row].append(piece)
            room[row] -= size
            if not room[row]:
                yield _row(rows.pop(row), length)
                room.pop(row)
    for pieces in rows:
        yield _row(pieces, length)


def _row(pieces: list[Document], length: int) -> Row:
    tokens, segments = np.zeros(length, np.int32), np.zeros(length, np.int32)
    learned = np.zeros(length, bool)
    begin = 0
    for number, piece in enumerate(pieces, 1):
        place = slice(begin, begin + len(piece.tokens))
        tokens[place], segments[place], learned[place] = piece.tokens, number, piece.learned
        begin = place.stop
    return Row(tokens, targets_within(tokens, segments, learned), segments)
