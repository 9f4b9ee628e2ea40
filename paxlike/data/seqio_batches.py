"""Batches read directly from a seqio Task or Mixture.

Batch k is a function of (mixture, seed, k) on any number of hosts: each host reads the whole stream
and keeps its own rows. Reaching batch k requires reading all batches before it, so a resumed run
reads them again. If this is too slow, write a store with `paxlike data materialize`.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from paxlike.config import DataConfig, TrainConfig, UserError
from paxlike.data.batch import Batch
from paxlike.data.progress import SECONDS_PER_LINE, say
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
    """The endless training stream in batches, with the interface of `grain_source.TrainBatches`."""

    def __init__(self, mixture: SeqioMixture, data: DataConfig, train: TrainConfig):
        self._mixture, self._data, self._train = mixture, data, train

    def batch_size(self, k: int) -> int:
        """Sequences of batch k, over all hosts."""
        return self._train.batch_size_at(k)

    def batches(
        self,
        start: int = 0,
        rows_of: RowsOf = np.arange,
        number: Callable[[int], int] = lambda k: k,
    ) -> Iterator[Batch]:
        """Batches number(start), number(start + 1), ... without end; `number` increases. Raises
        UserError if the stream ends.
        """
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
    """The validation documents in batches of `train.batch_size`; the last one is padded with rows
    without targets.
    """

    def __init__(self, mixture: SeqioMixture, data: DataConfig, train: TrainConfig):
        self._mixture, self._data, self._size = mixture, data, train.batch_size
        if next(packed(mixture.validation(), data), None) is None:
            raise UserError(
                f"{mixture.name} has no validation documents: its split 'validation' is empty, or "
                "there is no such split and all training documents are equal. Add examples."
            )

    def batches(self, count: int, rows_of: RowsOf = np.arange) -> Iterator[Batch]:
        """The first `count` batches, or fewer if the split is shorter."""
        rows = packed(self._mixture.validation(), self._data)
        for _ in range(count):
            if not (read := list(itertools.islice(rows, self._size))):
                return
            yield batch_of(read, rows_of(self._size), self._data)


def _drop(rows: Iterator[Row], count: int, name: str) -> None:
    """Skips `count` rows, and reports progress if it takes long."""
    begin = shown = time.monotonic()
    for done in range(count):
        if next(rows, None) is None:
            raise _ended(name, done)
        if time.monotonic() - shown >= SECONDS_PER_LINE:
            shown = time.monotonic()
            rate = (done + 1) / (shown - begin)
            say(
                f"skipping sequences of {name} that the run has read: {done + 1:,} of "
                f"{count:,}, {rate:,.0f} per second"
            )


def _ended(name: str, sequences: int) -> UserError:
    return UserError(
        f"{name} ended after {sequences:,} sequences, but training repeats a split without end: "
        "its source and preprocessors must allow this."
    )


def batch_of(rows: list[Row], chosen: np.ndarray, data: DataConfig) -> Batch:
    """The rows with these numbers; a number beyond the last gives a row without targets."""
    length = data.sequence_length
    nothing = Row(
        np.zeros(length, np.int32), np.full(length, -1, np.int32), np.zeros(length, np.int32)
    )
    picked = [rows[number] if number < len(rows) else nothing for number in chosen]

    def stacked(rows: list[np.ndarray]) -> np.ndarray:
        return np.stack(rows) if rows else np.zeros((0, length), np.int32)

    return Batch(
        stacked([row[0] for row in picked]),
        stacked([row[1] for row in picked]),
        None
        if data.packing == "split"
        else stacked([row.segments for row in picked if row.segments is not None]),
    )


def packed(documents: Iterable[Document], data: DataConfig) -> Iterator[Row]:
    """Sequences of `data.sequence_length` tokens, packed by `data.packing`. The last ones may be
    padded.
    """
    return (split_rows if data.packing == "split" else whole_rows)(documents, data.sequence_length)


def split_rows(documents: Iterable[Document], length: int) -> Iterator[Row]:
    """Concatenated documents, split every `length` tokens. Targets are shifted by one token."""
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
                tokens[begin : begin + length],
                np.where(learned[after], tokens[after], -1).astype(np.int32),
                None,
            )
        parts, held = [Document(tokens[end:], learned[end:])], len(tokens) - end
    if held > 1:
        tokens, learned = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        row = Row(np.zeros(length, np.int32), np.full(length, -1, np.int32), None)
        row.tokens[: held - 1], row.targets[: held - 1] = (
            tokens[:-1],
            np.where(learned[1:], tokens[1:], -1),
        )
        yield row


def whole_rows(documents: Iterable[Document], length: int) -> Iterator[Row]:
    """Each document in one row, truncated if longer: the fullest of a few open rows with enough
    room.
    """
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
