"""Arrays of a trained model that are read in parts, and conversions that read only what they need.

A part is selected by one slice for each dimension, all with explicit ends. Letters: D model width,
K key/value heads, H head dim, V vocabulary rows.
"""

from typing import Protocol

import numpy as np

Array = np.ndarray
Index = tuple[slice, ...]
ROWS = 4096
"""Rows of an embedding that are read at a time for their mean."""


class Sliceable(Protocol):
    """One parameter, or one layer of a stacked parameter. A NumPy array is one, too."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Index, /) -> Array: ...


def full(index: Index, shape: tuple[int, ...]) -> Index:
    """The slices with explicit ends."""
    return tuple(slice(*one.indices(size)[:2]) for one, size in zip(index, shape, strict=True))


class FewerHeads:
    """Key/value heads made of contiguous groups of heads, as attention groups the query heads
    (arXiv 2305.13245): the mean of a group, or its first head.
    """

    def __init__(self, source: Sliceable, axis: int, heads: int, how: str):
        """axis: of the heads. how: `mean` or `first`."""
        self.source, self.axis, self.how = source, axis, how
        self.group = source.shape[axis] // heads
        self.shape = (*source.shape[:axis], heads, *source.shape[axis + 1 :])

    def __getitem__(self, index: Index) -> Array:
        one, axis = index[self.axis], self.axis
        wide = slice(one.start * self.group, one.stop * self.group)
        heads = np.asarray(self.source[(*index[:axis], wide, *index[axis + 1 :])])
        shape = (*heads.shape[:axis], -1, self.group, *heads.shape[axis + 1 :])
        groups = heads.reshape(shape)
        if self.how == "first":
            return groups.take(0, axis + 1)
        # In float64 the mean of equal heads is exact for every size of a group.
        return groups.astype(np.float64).mean(axis + 1)


class Vocabulary:
    """The rows (or columns) of a vocabulary in another number: new ids get the mean of the old
    ones, rows that pad the vocabulary are zeros.
    """

    def __init__(self, source: Sliceable, axis: int, old: int, new: int, stored: int):
        """old, new: number of ids in the source and here. stored: with padding rows."""
        self.source, self.axis, self.old, self.new = source, axis, old, new
        self.shape = (*source.shape[:axis], stored, *source.shape[axis + 1 :])
        self._mean: Array | None = None

    def __getitem__(self, index: Index) -> Array:
        axis, rows = self.axis, index[self.axis]

        def at(start: int, stop: int) -> Index:
            return (*index[:axis], slice(start, stop), *index[axis + 1 :])

        known = np.asarray(self.source[at(min(rows.start, self.old), min(rows.stop, self.old))])
        sizes = [one.stop - one.start for one in index]
        dtype = np.float32 if self.new > self.old else known.dtype
        found = np.zeros(sizes, dtype)
        before: list[slice] = [slice(None)] * len(sizes)
        before[axis] = slice(0, known.shape[axis])
        found[tuple(before)] = known
        first, last = (max(self.old, rows.start), min(self.new, rows.stop))
        if first < last:
            before[axis] = slice(first - rows.start, last - rows.start)
            found[tuple(before)] = self.mean()[tuple(_whole(index, axis))]
        return found

    def mean(self) -> Array:
        """The mean of the old ids, with the axis of the vocabulary of size 1."""
        if self._mean is None:
            total = 0.0
            for start in range(0, self.old, ROWS):
                block: list[slice] = [slice(0, size) for size in self.source.shape]
                block[self.axis] = slice(start, min(start + ROWS, self.old))
                part = np.asarray(self.source[tuple(block)])
                total = total + part.sum(self.axis, dtype=np.float64, keepdims=True)
            self._mean = np.asarray(total / self.old)
        return self._mean


def _whole(index: Index, axis: int) -> list[slice]:
    return [slice(0, 1) if n == axis else one for n, one in enumerate(index)]


class HeadOfEmbedding:
    """An untied head with the logits of a tied one: the transposed embedding times a factor."""

    def __init__(self, embedding: Sliceable, factor: float):
        self.embedding, self.shape, self.factor = embedding, embedding.shape[::-1], factor

    def __getitem__(self, index: Index) -> Array:
        part = np.asarray(self.embedding[index[::-1]])
        return part.T.astype(np.float32) * np.float32(self.factor)
