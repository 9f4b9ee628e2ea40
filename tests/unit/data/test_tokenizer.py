import json

import numpy as np
import pytest
import sentencepiece

from paxlike.config import UserError
from paxlike.data.tokenizer import (
    BytesTokenizer,
    SentencePieceTokenizer,
    load_sentencepiece,
    load_tokenizer,
    train_sentencepiece,
)

from .conftest import AWKWARD, random_texts, source_text


@pytest.fixture(params=["bytes", "sentencepiece"])
def tokenizer(request, sentencepiece_tokenizer):
    return BytesTokenizer() if request.param == "bytes" else sentencepiece_tokenizer


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_text_comes_back_exactly(tokenizer):
    for text in random_texts(500):
        assert tokenizer.decode(tokenizer.encode(text)) == text, ascii(text)
    assert tokenizer.lossless


def test_ids_are_int32_in_the_vocabulary_without_specials(tokenizer):
    for text in random_texts(50):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert ids.min() >= 3 and ids.max() < tokenizer.vocab_size


def test_ids_that_stand_for_no_text_are_left_out(tokenizer):
    ids = [
        0,
        *tokenizer.encode("a b"),
        tokenizer.eod,
        2,
        -1,
        tokenizer.vocab_size,
        10**6,
        *tokenizer.encode("c"),
    ]
    assert tokenizer.decode(ids) == "a bc"
    assert tokenizer.decode([]) == ""


def test_bytes_that_are_not_utf8_are_replaced(tokenizer):
    euro = tokenizer.encode("€")
    assert len(euro) == 3
    assert set(tokenizer.decode(euro[:2])) == {"\ufffd"}


def test_save_and_load(tokenizer, tmp_path):
    names = tokenizer.save(tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    loaded = load_tokenizer(tmp_path)
    text = "def f(x):\n\treturn \u2581 12"
    assert np.array_equal(loaded.encode(text), tokenizer.encode(text))
    assert (loaded.kind, loaded.vocab_size, loaded.eod) == (
        tokenizer.kind,
        tokenizer.vocab_size,
        tokenizer.eod,
    )


def test_digits_are_split():
    tokenizer = train_sentencepiece(["year 1234567 of 1234567\n"] * 50, 281)
    assert len(tokenizer.encode("1234567")) == 7


def test_indents_and_line_ends_are_pieces():
    tokenizer = train_sentencepiece([f"def f(x):\n        return {n}\n" for n in range(50)], 300)
    assert len(tokenizer.encode(" " * 8)) == 1
    assert len(tokenizer.encode("):\n")) == 1


def test_special_ids_are_pad_0_eos_1_unknown_2(sentencepiece_tokenizer, tmp_path):
    sentencepiece_tokenizer.save(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert (processor.pad_id(), processor.eos_id(), processor.unk_id(), processor.bos_id()) == (
        0,
        1,
        2,
        -1,
    )
    assert sentencepiece_tokenizer.eod == 1


def test_training_is_deterministic(tmp_path):
    texts = [source_text(n) for n in range(20)] + ["\u2585 kept \u2581 \x00"]
    models = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train_sentencepiece(texts, 350).save(tmp_path / name)
        models.append((tmp_path / name / "tokenizer.model").read_bytes())
    assert models[0] == models[1]


@pytest.mark.parametrize(
    "vocab, texts", [(100, ["hello world"]), (5000, ["hello world"]), (300, []), (300, [""])]
)
def test_impossible_vocabulary_is_a_user_error(vocab, texts):
    with pytest.raises(UserError, match=f"{vocab} pieces.*--tokenizer-vocab"):
        train_sentencepiece(texts, vocab)


def _foreign_model(path, **settings):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([source_text(n) for n in range(30)]),
        model_prefix=str(path.with_suffix("")),
        vocab_size=300,
        model_type="unigram",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    return path


def test_an_existing_model_keeps_its_ways(tmp_path):
    path = _foreign_model(tmp_path / "foreign.model")
    tokenizer = load_sentencepiece(path)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    text = " two  spaces \u2581 and a mark"
    assert tokenizer.encode(text).tolist() == reference.encode(text)
    assert not tokenizer.lossless
    assert tokenizer.eod == reference.eos_id() == 2


def test_a_model_that_cannot_end_documents_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="foreign.model has no end-of-sentence piece"):
        load_sentencepiece(_foreign_model(tmp_path / "foreign.model", eos_id=-1))


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_a_file_that_is_no_model_is_a_user_error(tmp_path, content):
    (tmp_path / "x.model").write_bytes(content)
    with pytest.raises(UserError, match="x.model is not a SentencePiece model"):
        load_sentencepiece(tmp_path / "x.model")
    with pytest.raises(UserError, match="missing.model"):
        load_sentencepiece(tmp_path / "missing.model")


def test_a_folder_without_a_tokenizer_is_a_user_error(tmp_path, sentencepiece_tokenizer):
    with pytest.raises(UserError, match="tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "morse"}))
    with pytest.raises(UserError, match="morse"):
        load_tokenizer(tmp_path)
    sentencepiece_tokenizer.save(tmp_path)
    model = tmp_path / "tokenizer.model"
    changed = SentencePieceTokenizer(model.read_bytes())
    assert changed.vocab_size == 400
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(UserError, match="tokenizer.model has sha256"):
        load_tokenizer(tmp_path)
