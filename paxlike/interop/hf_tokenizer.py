"""Our tokenizers as Hugging Face's tokenizer.json, and back.

Both are a BPE model with byte fallback there: the bytes tokenizer one without merges, SentencePiece's one whose merges are ordered by
the scores of what they make. A space is a space in it, without SentencePiece's mark, so that a mark in the text stays a mark. Nothing
is normalized and nothing cut before merging. The names of special tokens in a text are text (`split_special_tokens`).
"""

import importlib.util
import json
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2

from paxlike.config import UserError
from paxlike.data.tokenizer import (
    EOD,
    PAD,
    SPACE_MARK,
    BytesTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_sentencepiece,
)

_BYTES = {"<pad>": PAD, "</s>": EOD, "<unk>": 2, **{f"<0x{byte:02X}>": byte + 3 for byte in range(256)}}
_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
PROBES = (
    " a\tb  \r\n\n    1234 \x00\x1f \u2581 \ufb01\u2460e\u0301 \U0001f600\n ",
    "def f(x):\r\n\treturn x  # \u00e9\u4e2d\u6587 \U0001f468\u200d\U0001f469\u200d\U0001f467 </s> <unk> <pad> <0x41>\n",
    *(" " * n for n in range(1, 40)),
    *(" " * n + "x\n" * n + "\n" + " " * n + "0" * n for n in range(1, 40)),
)
"""Texts on which the written tokenizer must agree with ours."""


def write(folder: Path, tokenizer: Tokenizer, sequence_length: int) -> list[str]:
    """Writes tokenizer.json and tokenizer_config.json (and tokenizer.model); returns notes for the user.

    Raises UserError where tokenizer.json cannot say what a SentencePiece model does, or gives other ids on `PROBES`.
    """
    if isinstance(tokenizer, BytesTokenizer):
        vocab, merges, special = _BYTES, [], ["<pad>", "</s>", "<unk>"]
    else:
        vocab, merges, special = _of_sentencepiece(tokenizer)
        (folder / "tokenizer.model").write_bytes(tokenizer.model)
    names = {id_: name for name, id_ in vocab.items()}
    (folder / "tokenizer.json").write_text(json.dumps(_described(vocab, merges, special), ensure_ascii=False))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": names[tokenizer.eod],
        "pad_token": names[PAD],
        "unk_token": special[-1],
        "model_max_length": sequence_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(told, indent=2) + "\n")
    if importlib.util.find_spec("tokenizers") is None:
        return ["the library tokenizers is not installed: tokenizer.json was not compared with the run's tokenizer."]
    check(folder / "tokenizer.json", tokenizer)
    return []


def check(path: Path, tokenizer: Tokenizer) -> None:
    """Raises UserError where a tokenizer.json gives other ids than `tokenizer`, or does not give a text of `PROBES` back."""
    import tokenizers

    other = tokenizers.Tokenizer.from_file(str(path))
    other.encode_special_tokens = True
    for text in PROBES:
        ours, theirs = tokenizer.encode(text).tolist(), other.encode(text, add_special_tokens=False).ids
        if ours != theirs:
            raise UserError(f"tokenizer.json does not match the run's tokenizer: {text!r} is {theirs}, not {ours}.")
        if other.decode(theirs) != text:
            raise UserError(f"tokenizer.json does not match: {text!r} is decoded as {other.decode(theirs)!r}.")


def _of_sentencepiece(tokenizer: SentencePieceTokenizer) -> tuple[dict[str, int], list[list[str]], list[str]]:
    """(piece -> id, merges, special pieces with the unknown one last)."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    kinds = {piece.type for piece in proto.pieces}
    if (
        proto.trainer_spec.model_type != proto.trainer_spec.BPE
        or not tokenizer.lossless
        or _Piece.BYTE not in kinds
        or kinds & {_Piece.USER_DEFINED, _Piece.UNUSED}
    ):
        raise UserError(
            "this SentencePiece model has no exact tokenizer.json: only BPE models that normalize nothing, fall back to bytes "
            "and have no user-defined pieces do (as `paxlike data prepare` trains them)."
        )
    texts = [piece.piece.replace(SPACE_MARK, " ") for piece in proto.pieces]
    normal = {text: piece.score for text, piece in zip(texts, proto.pieces, strict=True) if piece.type == _Piece.NORMAL}
    merges = []
    for text in sorted(normal, key=normal.get, reverse=True):
        splits = ((text[:at], text[at:]) for at in range(1, len(text)))
        merges += [[left, right] for left, right in splits if left in normal and right in normal]
    special = [text for text, piece in zip(texts, proto.pieces, strict=True) if piece.type == _Piece.CONTROL]
    return {text: id_ for id_, text in enumerate(texts)}, merges, [*special, texts[proto.trainer_spec.unk_id]]


def _described(vocab: dict[str, int], merges: list[list[str]], special: list[str]) -> dict:
    added = [
        {"id": vocab[name], "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for name in sorted(special, key=vocab.get)
    ]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": special[-1],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def read(folder: Path, vocab_size: int, eos: object) -> Tokenizer:
    """The tokenizer of a folder: its tokenizer.model, or bytes where tokenizer.json says that.

    Raises UserError where there is neither, where both are there and differ, or where it does not match the model's
    vocabulary or its end-of-sequence token `eos`.
    """
    vocab = _vocabulary(folder / "tokenizer.json")
    if (folder / "tokenizer.model").is_file():
        tokenizer = load_sentencepiece(folder / "tokenizer.model")
        proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
        for id_, piece in enumerate(proto.pieces if vocab else ()):
            names = {piece.piece, piece.piece.replace(SPACE_MARK, " ")}
            if not any(vocab.get(name) == id_ for name in names):
                raise UserError(
                    f"tokenizer.model and tokenizer.json in {folder} do not match: piece {id_} is {piece.piece!r} in the "
                    f"first, of id {vocab.get(piece.piece)} in the second. Remove the one that is not the model's."
                )
    elif vocab == _BYTES:
        tokenizer = BytesTokenizer()
    else:
        raise UserError(
            f"{folder} has no tokenizer that can be read: a SentencePiece tokenizer.model, or a tokenizer.json that this "
            "program wrote for bytes."
        )
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} ids, the model's vocabulary {vocab_size}: they do not match."
        )
    if tokenizer.eod not in (eos if isinstance(eos, list) else [eos]):
        raise UserError(
            f"the tokenizer in {folder} ends documents with id {tokenizer.eod}, config.json has eos_token_id {eos}: they do "
            "not match."
        )
    return tokenizer


def _vocabulary(path: Path) -> dict[str, int] | None:
    """Piece -> id; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text())
        vocab = told["model"]["vocab"]
        if isinstance(vocab, list):  # a unigram model's: [[piece, score], ...]
            vocab = {piece: id_ for id_, (piece, _) in enumerate(vocab)}
        return {**vocab, **{token["content"]: token["id"] for token in told.get("added_tokens") or ()}}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}.") from error
