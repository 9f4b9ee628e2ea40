"""Packing whole: rows of T tokens with each document in one row and attention within a document.

Best fit decreasing: the longest document first, each into the fullest row that has room for it.
"""

import bisect
from collections.abc import Iterator

import numpy as np


def cut_long(
    starts: np.ndarray, lengths: np.ndarray, row_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts documents into pieces of at most `row_tokens`; starts and lengths, in order."""
    counts = -(-lengths // row_tokens)
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    offset = number * row_tokens
    return starts[document] + offset, np.minimum(lengths[document] - offset, row_tokens)


def best_fit(lengths: np.ndarray, row_tokens: int) -> np.ndarray:
    """The row of each piece, int64. Rows are numbered in the order of their first pieces.

    Every length must be in 1 … row_tokens.
    """
    rows = np.empty(len(lengths), np.int64)
    open_rows: dict[int, list[int]] = {}
    free: list[int] = []  # The keys of open_rows, sorted: the room left in rows, in tokens.
    count = 0
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        at = bisect.bisect_left(free, length)
        if at == len(free):
            row, room, count = count, row_tokens, count + 1
        else:
            room = free[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], free[at]
        rows[piece] = row
        if left := room - length:
            if left not in open_rows:
                open_rows[left] = []
                bisect.insort(free, left)
            open_rows[left].append(row)
    _, first, names = np.unique(rows, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[names]


def fill_rows(
    tokens: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    rows: np.ndarray,
    row_tokens: int,
    slab: int = 4096,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (tokens, segments), each [up to `slab` rows, row_tokens], in the order of rows.

    Segment ids are 1, 2, … from the left, in the order of the pieces; 0 and token 0 are padding.
    """
    order = np.argsort(rows, kind="stable")
    count = int(rows.max(initial=-1)) + 1
    for begin in range(0, count, slab):
        end = min(begin + slab, count)
        packed = np.zeros((end - begin, row_tokens), tokens.dtype)
        segments = np.zeros((end - begin, row_tokens), segment_dtype(row_tokens))
        used = np.zeros(end - begin, np.int64)
        number = np.zeros(end - begin, np.int64)
        first, last = np.searchsorted(rows, (begin, end), sorter=order)
        for piece in order[first:last].tolist():
            row, start, length = rows[piece] - begin, starts[piece], lengths[piece]
            place = slice(used[row], used[row] + length)
            packed[row, place] = tokens[start : start + length]
            number[row] += 1
            segments[row, place] = number[row]
            used[row] += length
        yield packed, segments


def segment_dtype(row_tokens: int) -> np.dtype:
    """The dtype of stored segment ids: a row of T tokens has at most T segments."""
    return np.dtype("<u2" if row_tokens < 1 << 16 else "<u4")
