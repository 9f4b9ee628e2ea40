"""The token store on disk: a manifest, the tokenizer, and flat files of little-endian token ids.

- manifest.json: counts, and the sha256 and size of every file (see `Manifest`)
- tokenizer.json, tokenizer.model: the tokenizer
- chat_template.jinja: conversations only, the template that they were rendered with
- train.tokens, validation.tokens: for packing split, one stream, each document followed by the
  end-of-document id; for packing whole, rows of `sequence_length` tokens
- train.segments, validation.segments: packing whole only, the segment ids of the rows, 0 for
  padding
- train.loss_mask, validation.loss_mask: only if some tokens are not predicted; a byte per token, 1
  if it is predicted
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paxlike.config import UserError
from paxlike.data.location import fetched, in_bucket, located
from paxlike.data.manifest import PREPARE_AGAIN, SPLITS, Manifest, Split
from paxlike.data.manifest_reader import read_manifest
from paxlike.data.packing import segment_dtype
from paxlike.data.tokenizer import Tokenizer, load_tokenizer

TEMPLATE_FILE = "chat_template.jinja"
"""The template's file in a store, in a run's tokenizer folder, and in a Hugging Face folder."""
_CHECKED = 1 << 24
"""Tokens whose ids are checked at a time."""


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

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the template that conversations were rendered with."""
        if TEMPLATE_FILE not in self.manifest.files:
            return None
        return (self.folder / TEMPLATE_FILE).read_text()

    def tokens(self, split: Split) -> np.ndarray:
        """Memory-mapped ids: [tokens] for packing split, [rows, sequence_length] for whole."""
        return self._map(f"{split}.tokens", np.dtype(self.manifest.dtype))

    def segments(self, split: Split) -> np.ndarray:
        """Memory-mapped segment ids [rows, sequence_length]; packing whole only."""
        return self._map(f"{split}.segments", segment_dtype(self.manifest.sequence_length))

    def loss_mask(self, split: Split) -> np.ndarray | None:
        """Memory-mapped uint8, shaped like the tokens: 1 if a token is predicted. None: all are."""
        name = f"{split}.loss_mask"
        return self._map(name, np.dtype(np.uint8)) if name in self.manifest.files else None

    def _map(self, name: str, dtype: np.dtype) -> np.ndarray:
        shape: tuple[int, ...] = (self.manifest.files[name].bytes // dtype.itemsize,)
        if self.manifest.packing == "whole":
            shape = (shape[0] // self.manifest.sequence_length, self.manifest.sequence_length)
        # An empty file cannot be mapped.
        return (
            np.memmap(self.folder / name, dtype, "r", shape=shape)
            if shape[0]
            else np.zeros(shape, dtype)
        )

    def verify(self) -> None:
        """Reads every file.

        Raises UserError naming the first one whose sha256 is not the manifest's, or a token id that
        is not in the vocabulary.
        """
        for name, record in self.manifest.files.items():
            with (self.folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != record.sha256:
                raise UserError(
                    f"{self.folder / name} has sha256 {found}, manifest.json says {record.sha256}: "
                    f"the file was changed or damaged. {PREPARE_AGAIN}, or copy the file again."
                )
        for split in SPLITS:
            tokens = self.tokens(split).reshape(-1)
            for begin in range(0, len(tokens), _CHECKED):
                largest = int(tokens[begin : begin + _CHECKED].max())
                if largest >= self.vocab_size:
                    raise UserError(
                        f"{self.folder}: {split}.tokens has the id {largest}, but vocab_size in "
                        f"manifest.json is {self.vocab_size}. {PREPARE_AGAIN}."
                    )


def open_store(folder: str | Path) -> Store:
    """Opens a store and compares the sizes of its files with the manifest.

    Each host first copies a store in a bucket into its cache: tokens are read from memory-mapped
    files. Raises UserError if it is not a store, or a file is missing or truncated.
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
                f"{path} {what}; manifest.json says {record.bytes:,} bytes. {PREPARE_AGAIN}, or "
                "copy the file again."
            )
    return Store(folder, manifest)
