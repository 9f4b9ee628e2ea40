"""Converts seqio vocabularies to tokenizers and back, with the same ids.

A user's module can give its tasks the vocabulary of a store or of a run:
`vocabulary_of(load_tokenizer("runs/mine/tokenizer"))`.
"""

import functools
from typing import Any

from paxlike.config import UserError
from paxlike.data.seqio_source import libraries
from paxlike.data.tokenizer import PAD, UNKNOWN, BytesTokenizer, SentencePieceTokenizer, Tokenizer


def tokenizer_of(vocabulary: Any) -> Tokenizer:
    """The tokenizer with the ids of a `seqio.Vocabulary`: bytes, SentencePiece, or from
    `vocabulary_of`.

    SentencePiece treats the character U+2581 as a space. If the model is otherwise lossless, the
    tokenizer encodes this character as bytes. Extra ids have no text. Raises UserError for other
    vocabularies, or if there is no end-of-sentence piece.
    """
    seqio, _ = libraries()
    if isinstance(vocabulary, _wrapper()):
        return vocabulary.paxlike_tokenizer
    if isinstance(vocabulary, seqio.ByteVocabulary):
        return BytesTokenizer()
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return SentencePieceTokenizer(vocabulary.sp_model, vocabulary.sentencepiece_model_file)
    raise UserError(
        f"a {type(vocabulary).__name__} has no tokenizer here; a task's vocabulary must be a "
        "seqio.ByteVocabulary, a "
        "seqio.SentencePieceVocabulary, or made by paxlike.data.seqio_vocabulary.vocabulary_of."
    )


def vocabulary_of(tokenizer: Tokenizer) -> Any:
    """The `seqio.Vocabulary` with the ids of a tokenizer. Raises UserError if seqio is not
    installed.
    """
    seqio, _ = libraries()
    return (
        seqio.ByteVocabulary() if isinstance(tokenizer, BytesTokenizer) else _wrapper()(tokenizer)
    )


@functools.cache
def _wrapper() -> Any:
    """Defined when seqio is imported. seqio's own class reads a file and treats U+2581 as a
    space.
    """
    seqio, tensorflow = libraries()

    class PaxlikeVocabulary(seqio.Vocabulary):  # type: ignore[name-defined]
        """A SentencePiece tokenizer of paxlike."""

        def __init__(self, tokenizer: SentencePieceTokenizer):
            super().__init__()
            self.paxlike_tokenizer = tokenizer

        eos_id = property(lambda self: self.paxlike_tokenizer.eod)
        bos_id = property(lambda self: None)
        unk_id = property(lambda self: UNKNOWN)
        pad_id = property(lambda self: PAD)
        _base_vocab_size = property(lambda self: self.paxlike_tokenizer.vocab_size)

        def _encode(self, s: str | bytes) -> list[int]:
            return self.paxlike_tokenizer.encode(s.decode() if isinstance(s, bytes) else s).tolist()

        def _decode(self, ids) -> str:
            return self.paxlike_tokenizer.decode(ids)

        def _encode_tf(self, s):
            ids = tensorflow.numpy_function(
                lambda text: self.paxlike_tokenizer.encode(text.decode()), [s], tensorflow.int32
            )
            ids.set_shape([None])
            return ids

        def _decode_tf(self, ids):
            text = tensorflow.numpy_function(
                lambda row: self._decode(row).encode(), [ids], tensorflow.string
            )
            text.set_shape([])
            return text

        def __eq__(self, other) -> bool:
            mine = self.paxlike_tokenizer.model
            return isinstance(other, PaxlikeVocabulary) and other.paxlike_tokenizer.model == mine

        def __hash__(self) -> int:
            return hash(self.paxlike_tokenizer.model)

    return PaxlikeVocabulary
