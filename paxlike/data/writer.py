"""Writing the files of a token store."""

import contextlib
import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paxlike.data import packing
from paxlike.data.manifest import SPLITS, FileRecord, SplitCounts

DOCUMENT = np.dtype([("hash", "<u8"), ("tokens", "<u8"), ("bytes", "<u8")])
"""A row of the table of documents: content hash, tokens with the end-of-document id, UTF-8 bytes.
"""
_COPY = 1 << 22
_SLAB = 1 << 20


class HashedFile:
    """A new file whose size and sha256 are computed as it is written."""

    def __init__(self, path: Path):
        self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self._bytes = 0

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def write(self, values: np.ndarray) -> None:
        """Appends an array in pieces, so that a memory-mapped array is never in memory whole."""
        flat = values.reshape(-1)
        for begin in range(0, len(flat), _COPY):
            data = np.ascontiguousarray(flat[begin : begin + _COPY]).data.cast("B")
            self._hash.update(data)
            self._file.write(data)
            self._bytes += len(data)
            if (mapped := getattr(flat, "_mmap", None)) is not None:
                mapped.madvise(mmap.MADV_DONTNEED)  # its pages would count as this process's memory

    @property
    def record(self) -> FileRecord:
        return FileRecord(self._bytes, self._hash.hexdigest())


def file_record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def validation_threshold(hashes: np.ndarray, fraction: float) -> int:
    """The hash below which documents are used for validation: about `fraction` of them.

    Equal documents have equal hashes, so they are in the same split. If there are two or more
    different documents, each split has at least one; a single document is used for training.
    """
    lowest, highest = int(hashes.min()), int(hashes.max())
    return min(max(int(fraction * 2**64), lowest + 1), highest)


def keep(
    documents: np.ndarray, deduplicate: bool, min_bytes: int, max_bytes: int
) -> tuple[np.ndarray | None, dict[str, int]]:
    """Which documents are kept (None: all), and how many are dropped by reason.

    Of equal documents (with equal hashes of 64 bits) the first is kept. max_bytes 0: no limit.
    """
    size = documents["bytes"]
    reasons = {"too_short": size < min_bytes}
    if max_bytes:
        reasons["too_long"] = size > max_bytes
    if deduplicate:
        reasons["duplicate"] = np.ones(len(documents), bool)
        reasons["duplicate"][np.unique(documents["hash"], return_index=True)[1]] = False
    kept, dropped = np.ones(len(documents), bool), {}
    for name, found in reasons.items():
        if count := int((kept & found).sum()):
            dropped[name] = count
        kept &= ~found
    return (kept if dropped else None), dropped


def cut_in_two(documents: np.ndarray, fraction: float) -> np.ndarray:
    """Cuts a table of one document into two, so that a corpus of one file has a validation split.

    `validation_threshold` chooses the second: the last tokens. The text's bytes are divided in
    proportion to the tokens.
    """
    cut = np.repeat(documents, 2)
    kept = max(
        1, int(documents["tokens"][0]) - max(1, round(fraction * int(documents["tokens"][0])))
    )
    cut["tokens"] = kept, documents["tokens"][0] - kept
    cut["bytes"][0] = int(documents["bytes"][0]) * kept // int(documents["tokens"][0])
    cut["bytes"][1] -= cut["bytes"][0]
    cut["hash"] = 1, 0
    return cut


def truncated(documents: np.ndarray, most: int) -> np.ndarray:
    """The table with at most `most` tokens in each document, and bytes in proportion."""
    short = np.array(documents)
    long = documents["tokens"] > most
    short["tokens"][long] = most
    part = most / documents["tokens"][long]
    short["bytes"][long] = np.floor(documents["bytes"][long] * part).astype(np.uint64)
    return short


@dataclass(frozen=True)
class Tokenized:
    """All documents before they are split, in files of the temporary directory."""

    tokens: np.ndarray
    """Every document followed by its end-of-document id: [tokens]."""
    documents: np.ndarray
    """Of dtype DOCUMENT."""
    loss_mask: np.ndarray | None = None
    """uint8 [tokens]: 1 if a token is predicted. None: all are."""
    kept: np.ndarray | None = None
    """bool [documents]: which documents are written. None: all are."""

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays written for each split, by the suffix of the file."""
        return {"tokens": self.tokens} | (
            {} if self.loss_mask is None else {"loss_mask": self.loss_mask}
        )

    def slabs(self, threshold: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (rows of the table, start of their tokens, whether used for validation) in
        slabs.
        """
        start = 0
        for begin in range(0, len(self.documents), _SLAB):
            rows = np.asarray(self.documents[begin : begin + _SLAB])
            ends = start + np.cumsum(rows["tokens"]).astype(np.int64)
            starts, start = ends - rows["tokens"].astype(np.int64), int(ends[-1])
            if self.kept is not None:
                kept = self.kept[begin : begin + _SLAB]
                rows, starts = rows[kept], starts[kept]
            if len(rows):
                yield rows, starts, rows["hash"] < np.uint64(threshold)


def write_streams(data: Tokenized, threshold: int, folder: Path) -> tuple[dict, dict]:
    """Packing split: concatenates each split's documents. Returns (splits, files) of the
    manifest.
    """
    counts = dict.fromkeys(SPLITS, np.zeros(3, np.int64))
    with contextlib.ExitStack() as stack:
        names = [(split, kind) for split in SPLITS for kind in data.arrays]
        outputs = {name: stack.enter_context(HashedFile(folder / ".".join(name))) for name in names}
        for rows, starts, validation in data.slabs(threshold):
            # Adjacent documents of the same split are copied at once.
            stops = starts + rows["tokens"].astype(np.int64)
            apart = (validation[1:] != validation[:-1]) | (starts[1:] != stops[:-1])
            firsts = np.flatnonzero(np.r_[True, apart])
            ends = stops[np.r_[firsts[1:] - 1, len(rows) - 1]]
            for first, end in zip(firsts.tolist(), ends.tolist(), strict=True):
                for kind, array in data.arrays.items():
                    outputs[SPLITS[int(validation[first])], kind].write(array[starts[first] : end])
            for split, chosen in zip(SPLITS, (~validation, validation), strict=True):
                counts[split] = counts[split] + _count(rows[chosen])
        files = {".".join(name): output.record for name, output in outputs.items()}
    return {split: _split_counts(counts[split], 0, 1.0) for split in SPLITS}, files


def write_rows(
    data: Tokenized, threshold: int, folder: Path, row_tokens: int, truncate: bool = False
) -> tuple[dict, dict]:
    """Packing whole: packs documents into rows of `row_tokens`. Longer ones are cut into several
    pieces, or truncated.

    Returns (splits, files) of the manifest.
    """
    slabs = list(data.slabs(threshold))
    documents, starts, validation = (np.concatenate(parts) for parts in zip(*slabs, strict=True))
    if truncate:
        documents = truncated(documents, row_tokens)
    splits: dict[str, SplitCounts] = {}
    files: dict[str, FileRecord] = {}
    for split, chosen in zip(SPLITS, (~validation, validation), strict=True):
        lengths = documents["tokens"][chosen].astype(np.int64)
        piece_starts, piece_lengths = packing.cut_long(starts[chosen], lengths, row_tokens)
        rows = packing.best_fit(piece_lengths, row_tokens)
        names = (f"{split}.tokens", f"{split}.segments")
        with HashedFile(folder / names[0]) as tokens, HashedFile(folder / names[1]) as segments:
            for slab in packing.fill_rows(
                data.tokens, piece_starts, piece_lengths, rows, row_tokens
            ):
                tokens.write(slab[0])
                segments.write(slab[1])
            files |= {names[0]: tokens.record, names[1]: segments.record}
        if data.loss_mask is not None:
            with HashedFile(folder / f"{split}.loss_mask") as mask:
                for slab in packing.fill_rows(
                    data.loss_mask, piece_starts, piece_lengths, rows, row_tokens
                ):
                    mask.write(slab[0])
                files[f"{split}.loss_mask"] = mask.record
        count = int(rows.max(initial=-1)) + 1
        efficiency = round(int(lengths.sum()) / max(count * row_tokens, 1), 6)
        splits[split] = _split_counts(_count(documents[chosen]), count, efficiency)
    return splits, files


def _split_counts(counts: np.ndarray, rows: int, efficiency: float) -> SplitCounts:
    documents, tokens, text_bytes = map(int, counts)
    return SplitCounts(documents, tokens, text_bytes, rows, efficiency)


def _count(documents: np.ndarray) -> np.ndarray:
    """[documents, tokens, text bytes]."""
    return np.array([len(documents), documents["tokens"].sum(), documents["bytes"].sum()], np.int64)
