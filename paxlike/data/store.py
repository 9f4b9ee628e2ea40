"""The token store on disk: a folder with a manifest, the tokenizer, and flat files of little-endian token ids.

- manifest.json: counts, and the sha256 and size of every file (see `Manifest`)
- tokenizer.json, tokenizer.model: the tokenizer
- train.tokens, validation.tokens: packing split, one stream, each document followed by the end-of-document id;
  packing whole, rows of `sequence_length` tokens
- train.segments, validation.segments: packing whole only, the segment ids of the rows, 0 where they are padded
- train.loss_mask, validation.loss_mask: only where not every token is to be predicted, a byte for each token, 1 where it is
"""

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from paxlike.config import UserError
from paxlike.data.location import fetched, in_bucket, located
from paxlike.data.packing import segment_dtype
from paxlike.data.tokenizer import Tokenizer, load_tokenizer

FORMAT = 1
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
PREPARE_AGAIN = "Prepare the store again with `paxlike data prepare`"


@dataclass(frozen=True)
class SplitCounts:
    """What a split holds."""

    documents: int
    tokens: int
    """With the end-of-document ids, without padding."""
    text_bytes: int
    """UTF-8 bytes that the tokens stand for."""
    rows: int
    """Packing whole: rows of `sequence_length`. Packing split: 0."""
    efficiency: float
    """tokens / (rows * sequence_length): the part of the rows that is not padding. Packing split: 1."""


@dataclass(frozen=True)
class FileRecord:
    """Size and content of a file of the store."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """manifest.json."""

    format: int
    tokenizer: str
    """bytes or sentencepiece."""
    lossless: bool
    """Whether the tokenizer gives every text back exactly."""
    vocab_size: int
    eod: int
    """The id that ends a document."""
    dtype: str
    """How token ids are stored: <u2 or <u4."""
    packing: str
    sequence_length: int
    """Tokens of a row. 0 for packing split, which is read at any length."""
    validation_fraction: float
    splits: dict[str, SplitCounts]
    files: dict[str, FileRecord]
    inputs: dict[str, int]
    """Bytes on disk of each input file. Of a seqio Task or Mixture, `seqio:NAME/SPLIT`: its documents."""

    @property
    def fingerprint(self) -> str:
        """sha256, hex, of what a run reads: the files' contents and how they are packed, not where they came from."""
        content = {name: record.sha256 for name, record in sorted(self.files.items())}
        parts = [self.format, self.dtype, self.packing, self.sequence_length, content]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({"fingerprint": self.fingerprint, **dataclasses.asdict(self)}, indent=2) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Raises UserError where the folder has no manifest that this version can read."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a token store: it has no manifest.json. {PREPARE_AGAIN}.")
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise UserError(f"{path} has format {values['format']}, this version reads {FORMAT}. {PREPARE_AGAIN}.")
        fingerprint = values.pop("fingerprint")
        values["splits"] = {name: SplitCounts(**counts) for name, counts in values["splits"].items()}
        values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
        manifest = Manifest(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}. {PREPARE_AGAIN}.") from error
    outside = [name for name in manifest.files if Path(name).name != name or name in ("", ".", "..")]
    if outside:
        raise UserError(f"{path} names files that are not in its folder: {outside}. {PREPARE_AGAIN}.")
    if manifest.fingerprint != fingerprint:
        raise UserError(f"{path} was edited: its fingerprint does not belong to its contents. {PREPARE_AGAIN}.")
    return manifest


@dataclass(frozen=True)
class Store:
    """An opened token store (see `open_store`)."""

    folder: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def name(self) -> str:
        return f"the store {self.folder}"

    @property
    def location(self) -> str:
        return str(self.folder)

    @property
    def vocab_size(self) -> int:
        return self.manifest.vocab_size

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder)

    def tokens(self, split: Split) -> np.ndarray:
        """Memory-mapped ids: [tokens] for packing split, [rows, sequence_length] for packing whole."""
        return self._map(f"{split}.tokens", np.dtype(self.manifest.dtype))

    def segments(self, split: Split) -> np.ndarray:
        """Memory-mapped segment ids [rows, sequence_length]; packing whole only."""
        return self._map(f"{split}.segments", segment_dtype(self.manifest.sequence_length))

    def loss_mask(self, split: Split) -> np.ndarray | None:
        """Memory-mapped uint8 of the shape of the tokens: 1 where a token is to be predicted. None: all are."""
        name = f"{split}.loss_mask"
        return self._map(name, np.dtype(np.uint8)) if name in self.manifest.files else None

    def _map(self, name: str, dtype: np.dtype) -> np.ndarray:
        shape = (self.manifest.files[name].bytes // dtype.itemsize,)
        if self.manifest.packing == "whole":
            shape = (shape[0] // self.manifest.sequence_length, self.manifest.sequence_length)
        # An empty file cannot be mapped.
        return np.memmap(self.folder / name, dtype, "r", shape=shape) if shape[0] else np.zeros(shape, dtype)

    def verify(self) -> None:
        """Reads every file. Raises UserError naming the first whose sha256 is not the manifest's."""
        for name, record in self.manifest.files.items():
            with (self.folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != record.sha256:
                raise UserError(
                    f"{self.folder / name} has sha256 {found}, manifest.json says {record.sha256}: the file was "
                    f"changed or damaged. {PREPARE_AGAIN}, or copy the file again."
                )


def open_store(folder: str | Path) -> Store:
    """Opens a store and compares the sizes of its files with the manifest.

    One in a bucket is first copied into the cache, whole, on each host: tokens are read from memory-mapped files.
    Raises UserError where it is no store, or a file is missing or was cut short.
    """
    folder = located(folder)
    manifest = read_manifest(folder)
    if in_bucket(folder):
        sizes = {name: record.bytes for name, record in manifest.files.items()}
        folder = fetched(folder, sizes, manifest.fingerprint)
    for name, record in manifest.files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != record.bytes:
            what = "is missing" if found is None else f"has {found:,} bytes"
            raise UserError(
                f"{path} {what}; manifest.json says {record.bytes:,} bytes. {PREPARE_AGAIN}, or copy the file again."
            )
    return Store(folder, manifest)
