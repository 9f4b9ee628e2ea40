"""Text to token ids and back: bytes, SentencePiece with PaLM's settings (arXiv 2204.02311, section
2.2), and any tokenizer.json (`huggingface_tokenizer.py`).

The first two are lossless: `decode(encode(text)) == text` for every text. Their ids below 3 are
special: 0 is padding, 1 ends a document, 2 is SentencePiece's unknown piece (never used with byte
fallback).
"""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from paxlike.config import UserError
from paxlike.data.huggingface_tokenizer import (
    DEFINITION,
    SETTINGS,
    HuggingFaceTokenizer,
    digest,
)
from paxlike.data.location import located
from paxlike.data.lossless import SPACE_MARK, is_lossless

PAD, EOD, UNKNOWN = 0, 1, 2
_UNKNOWN_MARK = "\u2585"
"""SentencePiece's trainer skips every text that contains this character."""


class BytesTokenizer:
    """One id per byte of the UTF-8 text: byte b is id b + 3."""

    kind = "bytes"
    vocab_size = 256 + 3
    eod = EOD
    prefix: tuple[int, ...] = ()
    lossless = True

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, int32, without special ids."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of every text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special ids. Bytes that are not UTF-8 become U+FFFD."""
        ids = np.asarray(ids, np.int64)
        return (
            (ids[(ids >= 3) & (ids < self.vocab_size)] - 3)
            .astype(np.uint8)
            .tobytes()
            .decode(errors="replace")
        )

    def save(self, folder: Path) -> list[str]:
        """Writes `tokenizer.json` to `folder`; returns the names of the files written."""
        return _save(folder, {"kind": self.kind})


class SentencePieceTokenizer:
    """A SentencePiece model.

    Args:
      model: the bytes of a `.model` file.
      name: the origin of the bytes, for error messages.

    Raises UserError if the model is not valid, or has no end-of-sentence piece to end documents.
    """

    kind = "sentencepiece"
    prefix: tuple[int, ...] = ()

    def __init__(self, model: bytes, name: str = "the SentencePiece model"):
        self._model = model
        try:
            if not model:
                raise RuntimeError("empty")
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(
                f"{name} is not a SentencePiece model ({len(model):,} bytes); give a .model file."
            ) from error
        self.vocab_size: int = self._processor.vocab_size()
        self.eod: int = self._processor.eos_id()
        if self.eod < 0:
            raise UserError(
                f"{name} has no end-of-sentence piece, which ends documents; train it with "
                "eos_id=1, "
                "or let paxlike train a model (leave out --tokenizer-model)."
            )
        self._mark_ids = None
        marks = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        if all(self._processor.is_byte(piece) for piece in marks):
            self._mark_ids = np.array(marks, np.int32)
        self.lossless: bool = is_lossless(self)
        if not self.lossless:
            # A model that normalizes, or adds a space before every text, keeps its behavior.
            self._mark_ids = None

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, int32, without special ids."""
        if self._mark_ids is None or SPACE_MARK not in text:
            return self._processor.encode(text, out_type="numpy")
        ids = []
        for part in text.split(SPACE_MARK):
            ids += [self._processor.encode(part, out_type="numpy"), self._mark_ids]
        return np.concatenate(ids[:-1])

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of every text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special ids. Bytes that are not UTF-8 become U+FFFD."""
        ids = np.asarray(ids, np.int64)
        known = ids[(ids >= 0) & (ids < self.vocab_size) & (ids != self._processor.unk_id())]
        return self._processor.decode(known.tolist())

    @property
    def model(self) -> bytes:
        """The content of the `.model` file."""
        return self._model

    def save(self, folder: Path) -> list[str]:
        """Writes `tokenizer.model` and `tokenizer.json` to `folder`; returns their names."""
        (folder / "tokenizer.model").write_bytes(self._model)
        digest = hashlib.sha256(self._model).hexdigest()
        return ["tokenizer.model", *_save(folder, {"kind": self.kind, "sha256": digest})]


Tokenizer = BytesTokenizer | SentencePieceTokenizer | HuggingFaceTokenizer
"""`prefix`: the ids that begin a text. Where it is empty, a document follows the `eod` of another.
"""


def document_start(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that the first token of a document follows."""
    return tokenizer.prefix or (tokenizer.eod,)


def encode_rest(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text that continues another, which a lossy tokenizer begins differently."""
    if tokenizer.lossless:
        return tokenizer.encode(text)
    before, whole = tokenizer.encode("a"), tokenizer.encode("a" + text)
    # A text continues another before a space, so "a" is usually a token of its own.
    same = np.array_equal(whole[: len(before)], before)
    return whole[len(before) :] if same else tokenizer.encode(text)


def _save(folder: Path, description: dict) -> list[str]:
    (folder / "tokenizer.json").write_text(json.dumps(description, indent=2) + "\n")
    return ["tokenizer.json"]


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote to `folder`. Raises UserError if it is missing or changed."""
    path = located(folder) / "tokenizer.json"
    try:
        description = json.loads(path.read_text())
        kind = description["kind"]
        if kind == "bytes":
            return BytesTokenizer()
        if kind == "huggingface":
            return _load_huggingface(path, description)
        model = path.with_suffix(".model").read_bytes() if kind == "sentencepiece" else b""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"no tokenizer can be read from {folder}: {type(error).__name__}: {error}. Expected "
            "tokenizer.json (and tokenizer.model), as written by `paxlike data prepare`."
        ) from error
    if kind != "sentencepiece":
        raise UserError(
            f"{path} has a tokenizer of kind {kind!r}; this version supports bytes, sentencepiece "
            "and huggingface."
        )
    _check_digest(path, path.with_suffix(".model"), hashlib.sha256(model).hexdigest(), description)
    return SentencePieceTokenizer(model, str(path.with_suffix(".model")))


def is_saved(folder: Path) -> bool:
    """Whether the tokenizer.json of a folder is one that `save` wrote."""
    try:
        return "kind" in json.loads((folder / "tokenizer.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def _load_huggingface(path: Path, description: dict) -> HuggingFaceTokenizer:
    definition, settings = path.with_name(DEFINITION), path.with_name(SETTINGS)
    contents = definition.read_bytes(), settings.read_bytes()
    _check_digest(path, definition, digest(*contents), description)
    return HuggingFaceTokenizer(*contents, str(definition), description["eod"])


def _check_digest(path: Path, file: Path, found: str, description: dict) -> None:
    if found != description.get("sha256"):
        raise UserError(
            f"{file} has sha256 {found}, {path.name} says {description.get('sha256')}: the file "
            "was changed. Restore the original, or prepare the store again."
        )


def load_sentencepiece(path: str | Path) -> SentencePieceTokenizer:
    """The tokenizer of an existing `.model` file. Raises UserError if it cannot be read."""
    try:
        return SentencePieceTokenizer(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise UserError(
            f"the SentencePiece model {path} cannot be read: {error.strerror}."
        ) from error


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """Trains a BPE model with PaLM's settings: lossless, digits split, byte fallback.

    The same texts give the same model, for any number of threads. `texts` should contain newlines,
    so that the model learns pieces for line ends and indentation. Raises UserError if there is too
    little text for `vocab_size` pieces, or `vocab_size` is too small for the 256 bytes and the
    characters of the texts.
    """
    model = io.BytesIO()
    space = str.maketrans(SPACE_MARK + _UNKNOWN_MARK, "  ")
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text.translate(space) for text in texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            pad_id=PAD,
            eos_id=EOD,
            unk_id=UNKNOWN,
            bos_id=-1,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            max_sentence_length=2**30,
            num_threads=16,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = (
            str(error).rpartition("] ")[2].partition(" Increase")[0]
            or "there is no text to train on."
        )
        raise UserError(
            f"no SentencePiece model of {vocab_size} pieces can be trained on this text: {reason} "
            "Change --tokenizer-vocab, add text, or use --tokenizer bytes."
        ) from error
    return SentencePieceTokenizer(model.getvalue())
