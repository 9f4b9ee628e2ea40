"""Any tokenizer.json: ids, round trips, special tokens, and stores made with it."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
from made_tokenizers import DIFFICULT, KINDS, TEXTS

from paxlike.config import UserError
from paxlike.data import blocks
from paxlike.data.huggingface_tokenizer import load_huggingface
from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.data.store import open_store
from paxlike.data.tokenizer import document_start, encode_rest, load_tokenizer
from paxlike.infer.stream import continuation, prompt_tokens


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp("tokenizer") / request.param)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    return KINDS["byte_level"](tmp_path_factory.mktemp("tokenizer"))


def test_ids_and_texts_are_the_librarys(folder):
    ours = load_huggingface(folder)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True
    batch = ours.encode_batch(DIFFICULT)
    for text, found in zip(DIFFICULT, batch, strict=True):
        expected = library.encode(text, add_special_tokens=False).ids
        assert ours.encode(text).tolist() == found.tolist() == expected, text[:40]
        assert ours.encode(text).dtype == np.int32
        assert ours.decode(expected) == library.decode(expected)
    assert ours.vocab_size == library.get_vocab_size(with_added_tokens=True)


def test_a_text_that_looks_like_a_special_token_stays_text(byte_level):
    tokenizer = load_huggingface(byte_level)
    ids = tokenizer.encode("a<|end_of_text|>b")
    assert tokenizer.eod not in ids and tokenizer.decode(ids) == "a<|end_of_text|>b"
    # An added token that is not special is part of the text, as its file says.
    assert (
        len(tokenizer.encode("<tool>")) == 1
        and tokenizer.decode(tokenizer.encode("<tool>")) == "<tool>"
    )


@pytest.mark.optional("transformers")
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_transformers(kind, tmp_path):
    from transformers import AutoTokenizer

    folder = KINDS[kind](tmp_path / kind)
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_huggingface(folder)
    for text in DIFFICULT:
        expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text).tolist() == expected, text[:40]
        whole = theirs.encode(text, split_special_tokens=True)
        assert [*ours.prefix, *ours.encode(text).tolist()] == whole
        decoded = theirs.decode(
            expected, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert ours.decode(expected) == decoded


def test_what_begins_and_ends_a_document(folder):
    tokenizer = load_huggingface(folder)
    names = {id_: name for name, id_ in tokenizer._tokenizer.get_vocab().items()}
    begin = {"byte_level": ["<|begin_of_text|>"], "sentencepiece_bpe": ["<s>"], "unigram": []}
    assert [names[id_] for id_ in tokenizer.prefix] == begin[folder.name]
    assert names[tokenizer.eod] in ("<|end_of_text|>", "</s>")
    assert document_start(tokenizer) == (tokenizer.prefix or (tokenizer.eod,))
    assert prompt_tokens(tokenizer, "The")[: len(tokenizer.prefix)] == list(tokenizer.prefix)
    assert tokenizer.lossless == (folder.name == "byte_level")


def test_add_bos_token_decides(byte_level, tmp_path):
    for value, expected in ((False, 0), (True, 1), (None, 1)):
        folder = tmp_path / str(value)
        shutil.copytree(byte_level, folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(
            json.dumps({**settings, "add_bos_token": value})
        )
        assert len(load_huggingface(folder).prefix) == expected


def test_new_tokens_follow_a_prompt(folder):
    """Joined to the prompt's text, they are the whole text."""
    tokenizer = load_huggingface(folder)
    text = "import numpy as np import numpy"
    ids = tokenizer.encode(text).tolist()
    for cut in range(1, len(ids)):
        new = continuation(tokenizer, [*tokenizer.prefix, *ids[:cut]], ids[cut:])
        assert tokenizer.decode(ids[:cut]) + new == tokenizer.decode(ids)


def test_the_rest_of_a_document(folder):
    tokenizer = load_huggingface(folder)
    whole = tokenizer.encode("The quick brown fox")
    rest = encode_rest(tokenizer, " brown fox")
    assert np.array_equal(np.concatenate([tokenizer.encode("The quick"), rest]), whole)


def prepared(tmp_path, tokenizer: str, **more):
    for number, text in enumerate(TEXTS[:2]):
        (tmp_path / f"{number}.txt").write_text(text * (number + 3), newline="")
    config = PrepareConfig(
        (str(tmp_path / "*.txt"),), str(tmp_path / "store"), tokenizer=tokenizer,
        validation_fraction=0.5, **more,
    )  # fmt: skip
    return prepare(config)


def test_a_store(folder, tmp_path, monkeypatch):
    """Documents begin and end with the tokenizer's tokens, also if they are cut into blocks."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    store = prepared(tmp_path, str(folder))
    tokenizer = open_store(store.folder).tokenizer
    stored = np.concatenate([store.tokens("train"), store.tokens("validation")])
    expected = [
        np.array([*tokenizer.prefix, *tokenizer.encode(text * n), tokenizer.eod])
        for n, text in zip((3, 4), TEXTS[:2], strict=True)
    ]
    assert sorted(map(len, expected)) == sorted(
        [store.manifest.splits[name].tokens for name in ("train", "validation")]
    )
    assert np.bincount(stored).tolist() == np.bincount(np.concatenate(expected)).tolist()
    store.verify()
    copy = load_tokenizer(store.folder)
    assert copy.encode("The fox").tolist() == tokenizer.encode("The fox").tolist()
    assert copy.eod == tokenizer.eod and copy.prefix == tokenizer.prefix


def test_a_changed_file_is_noticed(byte_level, tmp_path):
    load_huggingface(byte_level).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="the file was changed"):
        load_tokenizer(tmp_path)


def test_tokenizers_that_cannot_be_used(byte_level, tmp_path):
    with pytest.raises(UserError, match="tokenizer.json cannot be read: No such file"):
        load_huggingface(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json cannot be read"):
        load_huggingface(tmp_path)
    shutil.copy(byte_level / "tokenizer.json", tmp_path / "tokenizer.json")
    assert load_huggingface(tmp_path).eod == load_huggingface(byte_level).eod  # the only known name
    text = (byte_level / "tokenizer.json").read_text().replace("<|end_of_text|>", "<|stop|>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="does not say which token ends a document"):
        load_huggingface(tmp_path / "tokenizer.json")
