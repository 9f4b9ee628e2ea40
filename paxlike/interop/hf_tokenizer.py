"""Converts tokenizers to Hugging Face's tokenizer.json and back.

Both kinds become a BPE model with byte fallback. The bytes tokenizer has no merges; SentencePiece's
merges are ordered by the scores of the resulting pieces. A space is written as a space, without
SentencePiece's mark, so a mark in the text stays a mark. There is no normalization and no
pre-tokenization. Names of special tokens in a text are plain text (`split_special_tokens`).
"""

import json
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2

from paxlike.config import UserError
from paxlike.data.huggingface_tokenizer import HuggingFaceTokenizer, load_huggingface
from paxlike.data.store import TEMPLATE_FILE
from paxlike.data.tokenizer import (
    EOD,
    PAD,
    SPACE_MARK,
    BytesTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_sentencepiece,
)

_BYTES = {
    "<pad>": PAD,
    "</s>": EOD,
    "<unk>": 2,
    **{f"<0x{byte:02X}>": byte + 3 for byte in range(256)},
}
_ModelProto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
_Piece = _ModelProto.SentencePiece
FILES = ("tokenizer.json", "tokenizer.model")
PROBES = (
    " a\tb  \r\n\n    1234 \x00\x1f \u2581 \ufb01\u2460e\u0301 \U0001f600\n ",
    "def f(x):\r\n\treturn x  # \u00e9\u4e2d\u6587 \U0001f468\u200d\U0001f469\u200d\U0001f467 "
    "</s> <unk> <pad> <0x41>\n",
    *(" " * n for n in range(1, 40)),
    *(" " * n + "x\n" * n + "\n" + " " * n + "0" * n for n in range(1, 40)),
)
"""Texts on which the written tokenizer must agree with the original."""


def write(folder: Path, tokenizer: Tokenizer, sequence_length: int) -> list[str]:
    """Writes tokenizer.json and tokenizer_config.json (and tokenizer.model). Returns notes for the
    user.

    Raises UserError if a SentencePiece model has no equivalent tokenizer.json, or if the ids differ
    on `PROBES`.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        for name, content in tokenizer.files.items():
            (folder / name).write_bytes(content)
        return []
    if isinstance(tokenizer, BytesTokenizer):
        vocab, special = _BYTES, ["<pad>", "</s>", "<unk>"]
        merges: list[list[str]] = []
    else:
        vocab, merges, special = _parse_sentencepiece(tokenizer)
        (folder / "tokenizer.model").write_bytes(tokenizer.model)
    names = {id_: name for name, id_ in vocab.items()}
    (folder / "tokenizer.json").write_text(
        json.dumps(_tokenizer_json(vocab, merges, special), ensure_ascii=False)
    )
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": names[tokenizer.eod],
        "pad_token": names[PAD],
        "unk_token": special[-1],
        "model_max_length": sequence_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    check(folder / "tokenizer.json", tokenizer)
    return []


def copy_template(source: Path, target: Path, tokenizer: Tokenizer) -> list[str]:
    """Copies the chat template's file, if there is one. Returns notes for the user."""
    if not (source / TEMPLATE_FILE).is_file():
        return []
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        # Such a tokenizer reads no special token in a text (`split_special_tokens`).
        return [
            f"the chat template is not exported: a tokenizer of kind {tokenizer.kind} has no "
            "special tokens that it could write"
        ]
    (target / TEMPLATE_FILE).write_bytes((source / TEMPLATE_FILE).read_bytes())
    return []


def check(path: Path, tokenizer: Tokenizer) -> None:
    """Raises UserError if tokenizer.json and `tokenizer` differ on a text of `PROBES`.

    Both the ids and the decoded text are compared.
    """
    import tokenizers

    other = tokenizers.Tokenizer.from_file(str(path))
    other.encode_special_tokens = True
    for text in PROBES:
        expected, ids = (
            tokenizer.encode(text).tolist(),
            other.encode(text, add_special_tokens=False).ids,
        )
        if expected != ids:
            raise UserError(
                f"tokenizer.json does not match the run's tokenizer: {text!r} is encoded as "
                f"{ids}, not {expected}."
            )
        if other.decode(ids) != text:
            raise UserError(
                f"tokenizer.json does not match: {text!r} is decoded as {other.decode(ids)!r}."
            )


def _parse_sentencepiece(
    tokenizer: SentencePieceTokenizer,
) -> tuple[dict[str, int], list[list[str]], list[str]]:
    """Returns (piece -> id, merges, special pieces with the unknown piece last)."""
    proto = _ModelProto.FromString(tokenizer.model)
    kinds = {piece.type for piece in proto.pieces}
    if (
        proto.trainer_spec.model_type != proto.trainer_spec.BPE
        or not tokenizer.lossless
        or _Piece.BYTE not in kinds
        or kinds & {_Piece.USER_DEFINED, _Piece.UNUSED}
    ):
        raise UserError(
            "this SentencePiece model has no exact tokenizer.json; only BPE models without "
            "normalization, with byte fallback and without user-defined pieces have one (`paxlike "
            "data prepare` trains such models)."
        )
    texts = [piece.piece.replace(SPACE_MARK, " ") for piece in proto.pieces]
    normal = {
        text: piece.score
        for text, piece in zip(texts, proto.pieces, strict=True)
        if piece.type == _Piece.NORMAL
    }
    merges = []
    for text in sorted(normal, key=normal.__getitem__, reverse=True):
        splits = ((text[:i], text[i:]) for i in range(1, len(text)))
        merges += [[left, right] for left, right in splits if left in normal and right in normal]
    special = [
        text
        for text, piece in zip(texts, proto.pieces, strict=True)
        if piece.type == _Piece.CONTROL
    ]
    return (
        {text: id_ for id_, text in enumerate(texts)},
        merges,
        [*special, texts[proto.trainer_spec.unk_id]],
    )


def _tokenizer_json(vocab: dict[str, int], merges: list[list[str]], special: list[str]) -> dict:
    added = [
        {"id": vocab[name], "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True} for name in sorted(special, key=vocab.__getitem__)
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
    """Reads a folder's tokenizer: tokenizer.model, or a tokenizer.json of the bytes tokenizer.

    Raises UserError if there is neither, if both exist and differ, or if the tokenizer does not
    match the model's vocabulary or its end-of-sequence token `eos`.
    """
    vocab = _vocabulary(folder / "tokenizer.json")
    if (folder / "tokenizer.model").is_file():
        sentencepiece = load_sentencepiece(folder / "tokenizer.model")
        proto = _ModelProto.FromString(sentencepiece.model)
        known = vocab or {}
        for id_, piece in enumerate(proto.pieces if known else ()):
            names = {piece.piece, piece.piece.replace(SPACE_MARK, " ")}
            if not any(known.get(name) == id_ for name in names):
                raise UserError(
                    f"tokenizer.model and tokenizer.json in {folder} do not match: piece "
                    f"{piece.piece!r} has id {id_} in tokenizer.model and "
                    f"{known.get(piece.piece)} in tokenizer.json. Remove the file that does not "
                    "belong to the model."
                )
        tokenizer: Tokenizer = sentencepiece
    elif vocab == _BYTES:
        tokenizer = BytesTokenizer()
    elif vocab is not None:
        tokenizer = load_huggingface(folder)
    else:
        raise UserError(
            f"{folder} has no tokenizer; provide a tokenizer.json or a SentencePiece "
            "tokenizer.model."
        )
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer in {folder} does not match the model: it has {tokenizer.vocab_size} "
            f"ids, the model's vocabulary {vocab_size}."
        )
    if tokenizer.eod not in (eos if isinstance(eos, list) else [eos]):
        raise UserError(
            f"the tokenizer in {folder} does not match the model: its end-of-document id is "
            f"{tokenizer.eod}, config.json has eos_token_id {eos}."
        )
    return tokenizer


def _vocabulary(path: Path) -> dict[str, int] | None:
    """Returns piece -> id, or None if the file does not exist."""
    if not path.is_file():
        return None
    try:
        contents = json.loads(path.read_text())
        vocab = contents["model"]["vocab"]
        if isinstance(vocab, list):  # a unigram model: [[piece, score], ...]
            vocab = {piece: id_ for id_, (piece, _) in enumerate(vocab)}
        return {
            **vocab,
            **{token["content"]: token["id"] for token in contents.get("added_tokens") or ()},
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}.") from error
