"""Text to token ids and back: bytes, and SentencePiece with PaLM's settings (arXiv 2204.02311, section 2.2).

Both are lossless: `decode(encode(text)) == text` for every text. Ids below 3 stand for no text: 0 pads, 1 ends a
document, 2 is SentencePiece's unknown piece (which byte fallback makes unreachable).
"""

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import sentencepiece

from paxlike.config import UserError
from paxlike.data.location import located

PAD, EOD, UNKNOWN = 0, 1, 2
SPACE_MARK = "\u2581"
"""SentencePiece writes a space as this character, so that it cannot tell the character itself from a space."""
_UNKNOWN_MARK = "\u2585"
"""SentencePiece's trainer skips every text that holds this one."""
_PROBE = f" a\tb  \r\n\n    1234 \x00\x1f {SPACE_MARK} \ufb01\u2460e\u0301 \U0001f600\n "
"""A text that a tokenizer which normalizes, strips, joins or drops anything does not give back."""


class BytesTokenizer:
    """One id for each byte of the UTF-8 text: byte b is id b + 3."""

    kind = "bytes"
    vocab_size = 256 + 3
    eod = EOD
    lossless = True

    def encode(self, text: str) -> np.ndarray:
        """Ids, int32, of `text`. Adds nothing."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; those that stand for no text are left out, bytes that are not UTF-8 become U+FFFD."""
        ids = np.asarray(ids, np.int64)
        return (ids[(ids >= 3) & (ids < self.vocab_size)] - 3).astype(np.uint8).tobytes().decode(errors="replace")

    def save(self, folder: Path) -> list[str]:
        """Writes `tokenizer.json` into `folder`; returns the names of the files written."""
        return _save(folder, {"kind": self.kind})


class SentencePieceTokenizer:
    """A SentencePiece model.

    Args:
      model: the bytes of a `.model` file.
      name: where they come from, for error messages.

    Raises UserError where they are no such model, or have no end-of-sentence piece to end documents with.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, name: str = "the SentencePiece model"):
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            self._processor = None
        if not model or self._processor is None:
            raise UserError(f"{name} is not a SentencePiece model ({len(model):,} bytes); give a .model file.")
        self.vocab_size: int = self._processor.vocab_size()
        self.eod: int = self._processor.eos_id()
        if self.eod < 0:
            raise UserError(
                f"{name} has no end-of-sentence piece, which is to end documents; train it with eos_id=1, "
                "or let paxlike train one (leave out --tokenizer-model)."
            )
        self._mark_ids = None
        marks = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        if all(self._processor.is_byte(piece) for piece in marks):
            self._mark_ids = np.array(marks, np.int32)
        self.lossless: bool = self.decode(self.encode(_PROBE)) == _PROBE
        if not self.lossless:
            # A model that normalizes, or begins every text with a space, is left to do so, as its makers meant it.
            self._mark_ids = None

    def encode(self, text: str) -> np.ndarray:
        """Ids, int32, of `text`. Adds nothing."""
        if self._mark_ids is None or SPACE_MARK not in text:
            return self._processor.encode(text, out_type="numpy")
        ids = []
        for part in text.split(SPACE_MARK):
            ids += [self._processor.encode(part, out_type="numpy"), self._mark_ids]
        return np.concatenate(ids[:-1])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; those that stand for no text are left out, bytes that are not UTF-8 become U+FFFD."""
        ids = np.asarray(ids, np.int64)
        known = ids[(ids >= 0) & (ids < self.vocab_size) & (ids != self._processor.unk_id())]
        return self._processor.decode(known.tolist())

    @property
    def model(self) -> bytes:
        """The `.model` file."""
        return self._model

    def save(self, folder: Path) -> list[str]:
        """Writes `tokenizer.model` and `tokenizer.json` into `folder`; returns the names of the files written."""
        (folder / "tokenizer.model").write_bytes(self._model)
        digest = hashlib.sha256(self._model).hexdigest()
        return ["tokenizer.model", *_save(folder, {"kind": self.kind, "sha256": digest})]


Tokenizer = BytesTokenizer | SentencePieceTokenizer


def _save(folder: Path, description: dict) -> list[str]:
    (folder / "tokenizer.json").write_text(json.dumps(description, indent=2) + "\n")
    return ["tokenizer.json"]


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`. Raises UserError where there is none, or it was changed."""
    path = located(folder) / "tokenizer.json"
    try:
        description = json.loads(path.read_text())
        kind = description["kind"]
        if kind == "bytes":
            return BytesTokenizer()
        model = path.with_suffix(".model").read_bytes() if kind == "sentencepiece" else b""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"no tokenizer can be read from {folder}: {type(error).__name__}: {error}. It should hold tokenizer.json "
            "(and tokenizer.model), as `paxlike data prepare` writes them."
        ) from error
    if kind != "sentencepiece":
        raise UserError(f"{path} names a tokenizer {kind!r}; this version knows bytes and sentencepiece.")
    found = hashlib.sha256(model).hexdigest()
    if found != description.get("sha256"):
        raise UserError(
            f"{path.with_suffix('.model')} has sha256 {found}, {path.name} says {description.get('sha256')}: the file "
            "was changed. Put the original back, or prepare the store again."
        )
    return SentencePieceTokenizer(model, str(path.with_suffix(".model")))


def load_sentencepiece(path: str | Path) -> SentencePieceTokenizer:
    """The tokenizer of an existing `.model` file. Raises UserError where it cannot be read."""
    try:
        return SentencePieceTokenizer(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"the SentencePiece model {path} cannot be read: {error.strerror}.") from error


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """A BPE model with PaLM's settings: lossless, digits split, bytes for what it has no piece for.

    The same texts give the same model: the number of threads does not change it. `texts` may hold newlines, and should,
    so that pieces for line ends and indents are learnt. Raises UserError where the texts are too little for
    `vocab_size` pieces, or these too few for the 256 bytes and the characters of the texts.
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
        reason = str(error).rpartition("] ")[2].partition(" Increase")[0] or "there is no text to train on."
        raise UserError(f"no SentencePiece model of {vocab_size} pieces can be trained on this text: {reason} "
                        "Change --tokenizer-vocab, add text, or use --tokenizer bytes.") from error  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())
