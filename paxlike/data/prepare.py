"""`paxlike data prepare`: from text files to a token store.

Threads encode blocks of text at once (SentencePiece gives the interpreter free while it works); what they make is
written in the order of the files, so the store does not depend on their number. The tokens of all documents go to one
file first; then, with every document's hash known, they are dealt out to the training and the validation split.
"""

import collections
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from paxlike.config import UserError
from paxlike.config.check import require
from paxlike.data import tokenizer as tokenizers
from paxlike.data import writer
from paxlike.data.corpus import BLOCK_BYTES, Block, Errors, find_files, read_blocks
from paxlike.data.progress import progress, say
from paxlike.data.store import FORMAT, Manifest, Store, open_store
from paxlike.files import new_folder

X, Y = TypeVar("X"), TypeVar("Y")


@dataclass(frozen=True)
class PrepareConfig:
    """Make a token store to train on out of text files: tokenizer, training and validation split, manifest."""

    input: tuple[str, ...]
    """Text files: names or patterns ('texts/**/*.txt'). A plain text file is one document; .jsonl, .ndjson and .json
    files hold one a line. Each may be compressed (.gz, .zst). The text must be UTF-8."""
    output: str
    """Folder to write the token store to. It must not exist."""
    field: str = "text"
    """Field of a JSONL line that holds the document."""
    tokenizer: Literal["bytes", "sentencepiece"] = "sentencepiece"
    """sentencepiece trains a model on the text, unless `tokenizer_model` names one."""
    tokenizer_model: str = ""
    """An existing SentencePiece .model file."""
    tokenizer_vocab: int = 32_000
    """Pieces of the SentencePiece model to train (PaLM: 256,000)."""
    tokenizer_sample: int = 16_000_000
    """Bytes of text, from all over the files, that the SentencePiece model is trained on."""
    packing: Literal["split", "whole"] = "split"
    """split: documents are concatenated, and cut at any length when they are read (PaLM). whole: packed whole into
    sequences of `sequence_length`; longer documents are cut."""
    sequence_length: int = 0
    """Tokens of a sequence, for packing whole."""
    validation_fraction: float = 0.01
    """Part of the documents kept apart for validation, chosen by a hash of their content."""
    workers: int = 0
    """Threads. 0: one for each core."""
    errors: Errors = "strict"
    """What bytes that are not UTF-8 are: strict stops with their place, replace puts U+FFFD."""

    def __post_init__(self):
        require(bool(self.input), "input is empty; name text files or patterns with --input.")
        require(bool(self.output), "output is empty; name the folder to write with --output.")
        require(
            (self.packing == "whole") == (self.sequence_length > 0),
            f"sequence_length is {self.sequence_length} for packing {self.packing!r}; packing whole needs a "
            "--sequence-length above 0, packing split none: it is read at any length.",
        )
        require(
            self.tokenizer == "sentencepiece" or not self.tokenizer_model,
            f"tokenizer_model {self.tokenizer_model} is a SentencePiece model, tokenizer is {self.tokenizer!r}; "
            "leave one of the two out.",
        )
        require(
            0 < self.validation_fraction < 1,
            f"validation_fraction is {self.validation_fraction}; it must be between 0 and 1.",
        )
        for name, least in (("workers", 0), ("tokenizer_vocab", 1), ("tokenizer_sample", 1)):
            value = getattr(self, name)
            require(value >= least, f"{name} is {value}; it must be {least} or more.")


def prepare(config: PrepareConfig) -> Store:
    """Writes the store and opens it. Raises UserError; leaves no folder behind then, nor when interrupted."""
    return prepare_files(find_files(config.input), config)


def prepare_files(files: list[Path], config: PrepareConfig) -> Store:
    """`prepare`, of these files, whatever `config.input` says."""
    output, sizes = Path(config.output), [_size(path) for path in files]
    with new_folder(output) as folder:
        if not sum(sizes):
            raise UserError(f"the corpus is empty: {_inputs(files, config)} without any text.")
        tokenizer = _tokenizer(files, sizes, config)
        described = tokenizer.save(folder)
        dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        _tokenize(files, sum(sizes), tokenizer, dtype, config, folder)
        if not (folder / "documents").stat().st_size:
            raise UserError(f"the corpus is empty: {_inputs(files, config)} without any text.")
        documents = np.memmap(folder / "documents", writer.DOCUMENT, "r")
        if len(documents) == 1:
            documents = writer.cut_in_two(documents, config.validation_fraction)
            say("note: the text is one document; its end is kept for validation")
        data = writer.Tokenized(np.memmap(folder / "tokens", dtype, "r"), documents)
        threshold = writer.validation_threshold(data.documents["hash"], config.validation_fraction)
        if config.packing == "split":
            splits, written = writer.write_streams(data, threshold, folder)
        else:
            splits, written = writer.write_rows(data, threshold, folder, config.sequence_length)
        (folder / "tokens").unlink()
        (folder / "documents").unlink()
        manifest = Manifest(
            format=FORMAT,
            tokenizer=tokenizer.kind,
            lossless=tokenizer.lossless,
            vocab_size=tokenizer.vocab_size,
            eod=tokenizer.eod,
            dtype=dtype.str,
            packing=config.packing,
            sequence_length=config.sequence_length,
            validation_fraction=config.validation_fraction,
            splits=splits,
            files=written | {name: writer.file_record(folder / name) for name in described},
            inputs=dict(zip(map(str, files), sizes, strict=True)),
        )
        writer.write_manifest(folder, manifest)
    for split, counts in splits.items():
        say(f"{output}: {split} {counts.documents:,} documents, {counts.tokens:,} tokens")
    if not splits["validation"].documents:
        say("note: nothing is kept for validation, as all documents are the same one")
    return open_store(output)


def _inputs(files: list[Path], config: PrepareConfig) -> str:
    return f"{len(files)} files match {' '.join(config.input)},"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _tokenizer(files: list[Path], sizes: list[int], config: PrepareConfig) -> tokenizers.Tokenizer:
    if config.tokenizer == "bytes":
        return tokenizers.BytesTokenizer()
    if not config.tokenizer_model:
        say(f"training a SentencePiece model of {config.tokenizer_vocab} pieces")
        return tokenizers.train_sentencepiece(_sample(files, sizes, config), config.tokenizer_vocab)
    tokenizer = tokenizers.load_sentencepiece(config.tokenizer_model)
    if not tokenizer.lossless:
        say(f"note: {config.tokenizer_model} does not give every text back exactly (whitespace, characters it lacks)")
    return tokenizer


def _sample(files: list[Path], sizes: list[int], config: PrepareConfig) -> Iterator[str]:
    """About `tokenizer_sample` bytes of text from all over the files, the same each time; all of it if it is less.

    Each file adds its part to what is owed. Small files are read whole, every so many; of large ones the beginning.
    """
    share, owed = config.tokenizer_sample / sum(sizes), 0.0
    for path, size in zip(files, sizes, strict=True):
        owed += size * share if share < 1 else float("inf")
        if owed < min(size, BLOCK_BYTES):
            continue
        for block in read_blocks(path):
            for piece in block.pieces(config.field, config.errors):
                yield piece.text
                owed -= piece.bytes
            if owed <= 0:
                break


def _tokenize(
    files: list[Path], disk_bytes: int, tokenizer: tokenizers.Tokenizer, dtype: np.dtype, config: PrepareConfig,
    folder: Path,
) -> None:  # fmt: skip
    """Writes all documents, in the order of the files: `tokens`, and the table `documents`, in `folder`."""
    encode = functools.partial(_encode, tokenizer=tokenizer, dtype=dtype, config=config)
    blocks = (block for path in files for block in read_blocks(path))
    open_document = np.zeros(1, writer.DOCUMENT)
    with (
        (folder / "tokens").open("xb") as token_file,
        (folder / "documents").open("xb") as document_file,
        progress("tokenizing", disk_bytes) as advance,
    ):
        for disk, tokens, documents in in_order(encode, blocks, config.workers or _cores()):
            # The first document may have begun in an earlier block, the last (without a hash) goes on in the next.
            for name in ("tokens", "bytes"):
                documents[name][0] += open_document[name][0]
            open_document = documents[-1:]
            token_file.write(tokens.data)
            document_file.write(documents[:-1].data)
            advance(disk)


def _encode(
    block: Block, tokenizer: tokenizers.Tokenizer, dtype: np.dtype, config: PrepareConfig
) -> tuple[int, np.ndarray, np.ndarray]:
    """(bytes on disk, tokens, documents) of a block; the last of the documents is the part of an unfinished one."""
    end, parts, documents = np.array([tokenizer.eod], np.int32), [np.zeros(0, np.int32)], [(0, 0, 0)]
    for piece in block.pieces(config.field, config.errors):
        ids = tokenizer.encode(piece.text)
        parts.append(ids)
        _, tokens, size = documents.pop()
        documents.append((piece.hash or 0, tokens + len(ids), size + piece.bytes))
        if piece.hash is not None:
            parts.append(end)
            documents[-1] = (piece.hash, tokens + len(ids) + 1, size + piece.bytes)
            documents.append((0, 0, 0))
    return block.disk_bytes, np.concatenate(parts).astype(dtype), np.array(documents, writer.DOCUMENT)


def in_order(function: Callable[[X], Y], items: Iterable[X], workers: int) -> Iterator[Y]:
    """`map(function, items)` with threads, a bounded number of items ahead."""
    pending = collections.deque()
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
