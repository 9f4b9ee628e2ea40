"""Tokenizes files with threads, in the order of the files.

Threads encode blocks of text (SentencePiece releases the interpreter lock). Their results are
written in the order of the files, so the store does not depend on the number of threads.
"""

import collections
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from paxlike.data import writer
from paxlike.data.bad_lines import BadLine, BadLineCount, ReadOptions, count_bad_lines
from paxlike.data.blocks import BLOCK_BYTES
from paxlike.data.corpus import Block, read_blocks
from paxlike.data.partial import Partial
from paxlike.data.progress import progress
from paxlike.data.tokenizer import Tokenizer, encode_rest

X = TypeVar("X")
Y = TypeVar("Y")


def sample_text(
    files: list[Path], sizes: list[int], sample_bytes: int, options: ReadOptions
) -> Iterator[str]:
    """About `sample_bytes` of text from all files, the same each time; all text if there is less.

    Each file adds its share to a budget. A small file is read whole once the budget covers it; of a
    large file the beginning is read.
    """
    share, budget = sample_bytes / sum(sizes), 0.0
    for path, size in zip(files, sizes, strict=True):
        budget += size * share if share < 1 else float("inf")
        if budget < min(size, BLOCK_BYTES):
            continue
        for block in read_blocks(path, options.field, options.columns):
            for piece in block.pieces(options):
                if isinstance(piece, BadLine):
                    continue
                yield piece.text
                budget -= piece.bytes
            if budget <= 0:
                break


class Encoded(NamedTuple):
    """The tokens of a block."""

    disk_bytes: int
    tokens: np.ndarray
    documents: np.ndarray
    """Of dtype DOCUMENT. The last row is the part of an unfinished document, and may be empty."""
    bad_lines: list[BadLine]
    loss_mask: np.ndarray | None = None
    """uint8 [tokens]: 1 if a token is predicted. None: all are."""


class BlockEncoder(Protocol):
    """Turns blocks into tokens."""

    @property
    def options(self) -> ReadOptions: ...

    def __call__(self, block: Block) -> Encoded: ...


@dataclass(frozen=True)
class Encoder:
    """The encoder of texts."""

    tokenizer: Tokenizer
    options: ReadOptions

    @property
    def dtype(self) -> np.dtype:
        """How token ids are stored."""
        return np.dtype("<u2" if self.tokenizer.vocab_size <= 1 << 16 else "<u4")

    def __call__(self, block: Block) -> Encoded:
        tokenizer = self.tokenizer
        end, prefix = np.array([tokenizer.eod], np.int32), np.array(tokenizer.prefix, np.int32)
        found = list(block.pieces(self.options))
        bad_lines = [line for line in found if isinstance(line, BadLine)]
        pieces = [piece for piece in found if not isinstance(piece, BadLine)]
        begun = iter(tokenizer.encode_batch([piece.text for piece in pieces if piece.first]))
        parts, documents = [np.zeros(0, np.int32)], [(0, 0, 0)]
        for piece in pieces:
            ids = next(begun) if piece.first else encode_rest(tokenizer, piece.text)
            new = [*([prefix] if piece.first else []), ids, *([] if piece.hash is None else [end])]
            parts += new
            _, tokens, size = documents.pop()
            documents.append((piece.hash or 0, tokens + sum(map(len, new)), size + piece.bytes))
            if piece.hash is not None:
                documents.append((0, 0, 0))
        return Encoded(
            block.disk_bytes,
            np.concatenate(parts).astype(self.dtype),
            np.array(documents, writer.DOCUMENT),
            bad_lines,
        )


BLOCKS_PER_RECORD = 1024
"""Blocks after which the finished work is recorded: about 256 MB of text."""


def tokenize_files(
    files: list[Path], disk_bytes: int, encoder: BlockEncoder, workers: int, work: Partial
) -> dict[str, BadLineCount]:
    """Writes all documents to `work`: `tokens`, the table `documents`, and for conversations
    `loss_mask`. Resumes finished work.

    Returns the skipped lines by kind.
    """
    options = encoder.options
    blocks = (
        block for path in files for block in read_blocks(path, options.field, options.columns)
    )
    done = dataclasses.replace(work.journal)
    with (
        work.open("tokens") as token_file,
        work.open("documents") as document_file,
        work.open("loss_mask") as mask_file,
        progress("tokenizing", disk_bytes) as advance,
    ):
        advance(done.disk_bytes)
        remaining = itertools.islice(blocks, done.blocks, None)
        for encoded in in_order(encoder, remaining, workers or _cores()):
            documents = encoded.documents
            # The first document may have started in an earlier block.
            for name, before in zip(("tokens", "bytes"), done.unfinished, strict=True):
                documents[name][0] += before
            done.unfinished = int(documents["tokens"][-1]), int(documents["bytes"][-1])
            done.tokens += token_file.write(encoded.tokens.data.cast("B"))
            done.documents += document_file.write(documents[:-1].data.cast("B"))
            if encoded.loss_mask is not None:
                done.loss_mask += mask_file.write(encoded.loss_mask.data)
            done.disk_bytes += encoded.disk_bytes
            done.blocks += 1
            count_bad_lines(encoded.bad_lines, done.bad_lines)
            if done.blocks % BLOCKS_PER_RECORD == 0:
                work.record(dataclasses.replace(done), token_file, document_file, mask_file)
            advance(encoded.disk_bytes)
    return done.bad_lines


def in_order(function: Callable[[X], Y], items: Iterable[X], workers: int) -> Iterator[Y]:
    """`map(function, items)` with threads, a bounded number of items ahead."""
    pending: collections.deque[Future[Y]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
