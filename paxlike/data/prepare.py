"""`paxlike data prepare`: makes a token store from text files.

The tokens of all documents are written to one file first (`partial.py`). Then, with the hash of
every document known, they are distributed to the training and the validation split.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from paxlike.config import UserError
from paxlike.config.validation import require
from paxlike.data import tokenizer as tokenizers
from paxlike.data import writer
from paxlike.data.bad_lines import BadLineCount, Errors, ReadOptions, summary
from paxlike.data.huggingface_tokenizer import load_huggingface
from paxlike.data.input_files import find_files
from paxlike.data.location import in_bucket
from paxlike.data.manifest import FORMAT, Manifest, write_manifest
from paxlike.data.partial import Partial, partial_work
from paxlike.data.progress import say
from paxlike.data.store import Store, open_store
from paxlike.data.tokenize_files import Encoder, sample_text, tokenize_files
from paxlike.files import check_new, new_folder


@dataclass(frozen=True)
class PrepareConfig:
    """Makes a token store for training from text files: tokenizer, splits, manifest."""

    input: tuple[str, ...]
    """Text files: names, patterns ('texts/**/*.txt') or directories, on disk or in a bucket
    (gs://, s3://). A plain text file is one document; .jsonl, .ndjson and .json files have one JSON
    object per line, .csv files a header and one document per row. Each may be compressed (.gz,
    .bz2, .xz, .zst). Parquet and Arrow files, and directories that `datasets.save_to_disk` wrote,
    have one document per row. The text must be UTF-8."""
    output: str
    """Directory to write the token store to. It must not exist."""
    field: str = "text"
    """JSONL field, or column of a table, that holds the document. Dots separate the names of nested
    fields.
    """
    tokenizer: str = "sentencepiece"
    """`bytes`, `sentencepiece` (trains a model on the text, unless `tokenizer_model` names one), or
    the path of a tokenizer.json, of a Hugging Face folder that has one, or of a SentencePiece
    .model file.
    """
    tokenizer_model: str = ""
    """An existing SentencePiece .model file."""
    tokenizer_vocab: int = 32_000
    """Vocabulary size of the SentencePiece model to train (PaLM: 256,000)."""
    tokenizer_sample: int = 16_000_000
    """Bytes of text, from all files, that the SentencePiece model is trained on."""
    packing: Literal["split", "whole"] = "split"
    """split: documents are concatenated and cut into sequences of any length when they are read
    (PaLM). whole: each document is packed into one sequence of `sequence_length`; longer documents
    are cut.
    """
    sequence_length: int = 0
    """Tokens of a sequence, for packing whole."""
    validation_fraction: float = 0.01
    """Fraction of the documents used for validation, chosen by a hash of their content."""
    deduplicate: bool = False
    """Keep only the first of several equal documents."""
    min_bytes: int = 0
    """Drop documents whose text has fewer bytes."""
    max_bytes: int = 0
    """Drop documents whose text has more bytes. 0: keep all."""
    workers: int = 0
    """Threads. 0: one per core."""
    errors: Errors = "strict"
    """Bytes that are not UTF-8. strict: fail and report their place. replace: use U+FFFD."""
    skip_bad_lines: bool = False
    """Skip JSONL lines and CSV rows without a readable document (broken JSON or CSV, missing field,
    null or another type, bytes that are not UTF-8) instead of failing. The manifest lists how many
    were skipped, by kind, and where the first ones are."""

    def __post_init__(self):
        require(bool(self.input), "input is empty; name text files or patterns with --input.")
        require(bool(self.output), "output is empty; name the directory to write with --output.")
        require(
            (self.packing == "whole") == (self.sequence_length > 0),
            f"sequence_length is {self.sequence_length} for packing {self.packing!r}; packing "
            "whole "
            "needs a --sequence-length above 0, packing split none: it is read at any length.",
        )
        require(
            self.tokenizer == "sentencepiece" or not self.tokenizer_model,
            f"tokenizer_model {self.tokenizer_model} is a SentencePiece model, tokenizer is "
            f"{self.tokenizer!r}; leave one of the two out.",
        )
        require(
            0 < self.validation_fraction < 1,
            f"validation_fraction is {self.validation_fraction}; it must be between 0 and 1.",
        )
        for name, least in (
            ("workers", 0), ("tokenizer_vocab", 1), ("tokenizer_sample", 1), ("min_bytes", 0),
            ("max_bytes", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            require(value >= least, f"{name} is {value}; it must be {least} or more.")
        require(
            not self.max_bytes or self.min_bytes <= self.max_bytes,
            f"min_bytes {self.min_bytes} is above max_bytes {self.max_bytes}, so that no document "
            "is kept.",
        )

    @property
    def options(self) -> ReadOptions:
        return ReadOptions(self.field, self.errors, self.skip_bad_lines)


def prepare(config: PrepareConfig) -> Store:
    """Writes the store and opens it.

    Raises UserError. If it fails or is interrupted, only tokenized text of a large corpus is left
    behind, which the same call resumes from (`partial.py`).
    """
    return prepare_files(find_files(config.input), config)


def prepare_files(files: list[Path], config: PrepareConfig) -> Store:
    """`prepare` for these files; `config.input` is used in messages only."""
    output, sizes = Path(config.output), [_size(path) for path in files]
    check_new(output)
    if not sum(sizes):
        raise _empty(files, config, {})
    with partial_work(output, _key(files, sizes, config)) as work, new_folder(output) as folder:
        tokenizer = _tokenizer_of(work, files, sizes, config)
        tokenizer_files = tokenizer.save(folder)
        encoder = Encoder(tokenizer, config.options)
        bad_lines = tokenize_files(files, sum(sizes), encoder, config.workers, work)
        if not (work.folder / "documents").stat().st_size:
            raise _empty(files, config, bad_lines)
        splits, written, dropped = _write_splits(encoder.dtype, config, work.folder, folder)
        manifest = Manifest(
            format=FORMAT,
            tokenizer=tokenizer.kind,
            lossless=tokenizer.lossless,
            vocab_size=tokenizer.vocab_size,
            eod=tokenizer.eod,
            dtype=encoder.dtype.str,
            packing=config.packing,
            sequence_length=config.sequence_length,
            validation_fraction=config.validation_fraction,
            splits=splits,
            files=written | {name: writer.file_record(folder / name) for name in tokenizer_files},
            inputs=dict(zip(map(str, files), sizes, strict=True)),
            bad_lines=bad_lines,
            dropped=dropped,
        )
        write_manifest(folder, manifest)
    for split, counts in splits.items():
        say(f"{output}: {split} {counts.documents:,} documents, {counts.tokens:,} tokens")
    if not splits["validation"].documents:
        say("note: the validation split is empty, because all documents are identical")
    if bad_lines:
        say(summary(bad_lines))
    for reason, count in dropped.items():
        say(f"dropped {count:,} documents: {reason.replace('_', ' ')}")
    return open_store(output)


def _key(files: list[Path], sizes: list[int], config: PrepareConfig) -> str:
    """Identifies what the tokens depend on: the files and the settings of reading them."""
    times = [getattr(path.stat(), "st_mtime_ns", None) for path in files]
    settings = [
        config.field, config.tokenizer, config.tokenizer_model, config.tokenizer_vocab,
        config.tokenizer_sample, config.errors, config.skip_bad_lines,
    ]  # fmt: skip
    values = [FORMAT, settings, *zip(map(str, files), sizes, times, strict=True)]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _tokenizer_of(
    work: Partial, files: list[Path], sizes: list[int], config: PrepareConfig
) -> tokenizers.Tokenizer:
    """The tokenizer of resumed work, or a new one."""
    saved = work.folder / "tokenizer"
    if work.journal.blocks:
        return tokenizers.load_tokenizer(saved)
    tokenizer = _tokenizer(files, sizes, config)
    saved.mkdir()
    tokenizer.save(saved)
    return tokenizer


def _write_splits(
    dtype: np.dtype, config: PrepareConfig, work: Path, folder: Path
) -> tuple[dict, dict, dict[str, int]]:
    """Distributes the documents tokenized in `work`. Returns (splits, files, dropped) of the
    manifest.
    """
    documents: np.ndarray = np.memmap(work / "documents", writer.DOCUMENT, "r")
    kept, dropped = writer.keep(documents, config.deduplicate, config.min_bytes, config.max_bytes)
    count = len(documents) if kept is None else int(kept.sum())
    if not count:
        reasons = ", ".join(
            f"{count:,} {name.replace('_', ' ')}" for name, count in dropped.items()
        )
        raise UserError(
            f"no document is kept ({reasons}); change --min-bytes, --max-bytes or the input."
        )
    if len(documents) == 1:
        documents = writer.cut_in_two(documents, config.validation_fraction)
        kept = None
        say("note: the text is one document; its end is used for validation")
    data = writer.Tokenized(np.memmap(work / "tokens", dtype, "r"), documents, kept=kept)
    hashes = documents["hash"] if kept is None else documents["hash"][kept]
    threshold = writer.validation_threshold(hashes, config.validation_fraction)
    if config.packing == "split":
        splits, files = writer.write_streams(data, threshold, folder)
    else:
        splits, files = writer.write_rows(data, threshold, folder, config.sequence_length)
    return splits, files, dropped


def _empty(
    files: list[Path], config: PrepareConfig, bad_lines: dict[str, BadLineCount]
) -> UserError:
    skipped = f" ({summary(bad_lines)})" if bad_lines else ""
    count = f"{len(files)} file{'' if len(files) == 1 else 's'}"
    return UserError(
        f"the corpus is empty: there is no text in the {count} matching "
        f"{' '.join(config.input)}{skipped}."
    )


def _size(path: Path) -> int:
    try:
        found = path.stat()
        return found.length if in_bucket(path) else found.st_size  # type: ignore[attr-defined]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _tokenizer(files: list[Path], sizes: list[int], config: PrepareConfig) -> tokenizers.Tokenizer:
    if config.tokenizer != "sentencepiece":
        return _noted(named_tokenizer(config.tokenizer), config.tokenizer)
    if not config.tokenizer_model:
        say(f"training a SentencePiece model with a vocabulary of {config.tokenizer_vocab}")
        texts = sample_text(files, sizes, config.tokenizer_sample, config.options)
        return tokenizers.train_sentencepiece(texts, config.tokenizer_vocab)
    model = config.tokenizer_model
    return _noted(tokenizers.load_sentencepiece(model), model)


def named_tokenizer(name: str) -> tokenizers.Tokenizer:
    """`bytes`, or the tokenizer of a tokenizer.json, a folder that has one, or a .model file.

    Raises UserError if it cannot be read.
    """
    if name == "bytes":
        return tokenizers.BytesTokenizer()
    path = Path(name).expanduser()
    return (
        tokenizers.load_sentencepiece(path) if path.suffix == ".model" else load_huggingface(path)
    )


def _noted(tokenizer: tokenizers.Tokenizer, name: str) -> tokenizers.Tokenizer:
    if not tokenizer.lossless:
        say(
            f"note: {name} does not reproduce every text exactly: it changes whitespace or "
            "characters that it lacks"
        )
    return tokenizer
