"""manifest.json of a token store: what the store holds, and the size and sha256 of every file."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paxlike.data.bad_lines import BadLineCount

FORMAT = 1
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
PREPARE_AGAIN = "Prepare the store again with `paxlike data prepare`"


@dataclass(frozen=True)
class SplitCounts:
    """The size of a split."""

    documents: int
    tokens: int
    """With the end-of-document ids, without padding."""
    text_bytes: int
    """UTF-8 bytes that the tokens stand for. 0 for imported tokens: not known."""
    rows: int
    """Packing whole: rows of `sequence_length`. Packing split: 0."""
    efficiency: float
    """tokens / (rows * sequence_length): the part of the rows that is not padding. Packing split:
    1.
    """


@dataclass(frozen=True)
class FileRecord:
    """Size and content of a file of the store."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    format: int
    tokenizer: str
    """bytes, sentencepiece or huggingface."""
    lossless: bool
    """Whether the tokenizer reproduces every text exactly."""
    vocab_size: int
    eod: int
    """The id that ends a document."""
    dtype: str
    """How token ids are stored: <u2 or <u4."""
    packing: str
    """split or whole."""
    sequence_length: int
    """Tokens of a row. 0 for packing split, which is read at any length."""
    validation_fraction: float
    splits: dict[str, SplitCounts]
    files: dict[str, FileRecord]
    inputs: dict[str, int]
    """Bytes on disk of each input file; for a seqio Task or Mixture, documents per
    `seqio:NAME/SPLIT`."""
    bad_lines: dict[str, BadLineCount] = dataclasses.field(default_factory=dict)
    """Lines of the input that were skipped, by kind. Left out of manifest.json if there are none.
    """
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    """Documents that were dropped: too_short, too_long, duplicate, nothing_predicted. Left out if
    there are none."""
    truncated: int = 0
    """Conversations longer than `sequence_length`, whose end is missing. Left out if none is."""
    predicted: dict[str, int] = dataclasses.field(default_factory=dict)
    """Split -> tokens with a loss, for conversations. Left out for texts: all tokens have one."""
    chat_template: str = ""
    """The name or file that chat_template.jinja comes from. Left out if there is none."""

    @property
    def fingerprint(self) -> str:
        """sha256, hex, of what a run reads: the content and packing of the files, not their
        origin.
        """
        content = {name: record.sha256 for name, record in sorted(self.files.items())}
        parts = [self.format, self.dtype, self.packing, self.sequence_length, content]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def to_json(self) -> str:
        values = {"fingerprint": self.fingerprint, **dataclasses.asdict(self)}
        for name in ("bad_lines", "dropped", "truncated", "predicted", "chat_template"):
            if not values[name]:
                del values[name]
        return json.dumps(values, indent=2) + "\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / "manifest.json").write_text(manifest.to_json())
