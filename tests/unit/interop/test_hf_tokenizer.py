"""tokenizer.json gives the run's ids for any text; a tokenizer that does not match raises."""

import importlib.util
import json
import random

import pytest
from interop_cases import case, make_run
from made_tokenizers import byte_level

from paxlike.config import UserError
from paxlike.data.huggingface_tokenizer import load_huggingface
from paxlike.data.tokenizer import BytesTokenizer, SentencePieceTokenizer, train_sentencepiece
from paxlike.interop import hf_tokenizer
from paxlike.interop.hf import from_hf, to_hf

_DRAW = random.Random(1)
WORDS = ["".join(_DRAW.choices("abcdefghinorstu", k=_DRAW.randint(2, 7))) for _ in range(200)]
TEXTS = [
    f"def {' '.join(_DRAW.choices(WORDS, k=9))}(self, x):\r\n    return {n * 977} if x else 'né "
    "☃'\n\n" + " " * n
    for n in range(300)
]
TRICKY = [
    "", "a\r\nb\r\n\r\n", "\x00", "a\x00b\x00\x00", "😀 👨‍👩‍👧 ☃", "</s><pad><unk>", "<0x41>",
    "\u2581 \u2581\u2581 a", " lead and trail  ",
    "\t\tx\n \n  \n", "0123456789 10000", "e\u0301 \ufb01", "\x1b[0m\x7f", "中文字",
]  # fmt: skip


@pytest.fixture(scope="module", params=["bytes", "sentencepiece"])
def tokenizer(request):
    return BytesTokenizer() if request.param == "bytes" else train_sentencepiece(TEXTS, 420)


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    run = make_run(folder / "run", case(vocab_size=tokenizer.vocab_size), tokenizer)
    to_hf(run, folder / "out")
    return folder / "out"


@pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None, reason="tokenizers is not installed (extra hf)"
)
def test_the_same_ids_for_any_text(tokenizer, exported):
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))
    theirs.encode_special_tokens = True
    draw = random.Random(0)
    parts = [
        *TRICKY,
        "self",
        "return",
        "é",
        "\n",
        *(" " * n for n in range(1, 40)),
        *("0" * n for n in range(1, 9)),
    ]
    texts = TRICKY + ["".join(draw.choices(parts, k=draw.randint(1, 12))) for _ in range(2000)]
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ids == tokenizer.encode(text).tolist(), repr(text)
        assert theirs.decode(ids) == text, repr(text)


@pytest.mark.optional("transformers")
def test_the_real_library_loads_it(tokenizer, exported):
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (
        tokenizer.eod,
        0,
        tokenizer.vocab_size,
    )
    for text in TRICKY:
        ids = theirs(text)["input_ids"]
        assert ids == tokenizer.encode(text).tolist(), repr(text)
        assert theirs.decode(ids) == text, repr(text)


def test_a_round_trip(tokenizer, exported, tmp_path):
    back = hf_tokenizer.read(exported, tokenizer.vocab_size, tokenizer.eod)
    assert type(back) is type(tokenizer)
    for text in TRICKY:
        assert back.encode(text).tolist() == tokenizer.encode(text).tolist()
    from_hf(exported, tmp_path / "back")


@pytest.mark.skipif(
    importlib.util.find_spec("tokenizers") is None, reason="tokenizers is not installed (extra hf)"
)
def test_a_different_tokenizer_raises(exported, tokenizer):
    contents = json.loads((exported / "tokenizer.json").read_text())
    vocab = contents["model"]["vocab"]
    vocab["<0x00>"], vocab["<0x1F>"] = vocab["<0x1F>"], vocab["<0x00>"]
    other = exported.parent / f"other-{tokenizer.kind}.json"
    other.write_text(json.dumps(contents))
    with pytest.raises(UserError, match="does not match the run's tokenizer"):
        hf_tokenizer.check(other, tokenizer)


def test_two_tokenizers_that_differ(tmp_path):
    tokenizer = train_sentencepiece(TEXTS, 420)
    hf_tokenizer.write(tmp_path, tokenizer, 64)
    (tmp_path / "tokenizer.model").write_bytes(
        train_sentencepiece(TEXTS[::-1] + ["zebra quiz " * 500], 420).model
    )
    with pytest.raises(UserError, match=r"do not match: piece .* has id"):
        hf_tokenizer.read(tmp_path, 420, 1)


def test_folders_without_a_supported_tokenizer(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer; provide a tokenizer.json"):
        hf_tokenizer.read(tmp_path, 300, 1)
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})
    )
    with pytest.raises(UserError, match="does not say which token ends a document"):
        hf_tokenizer.read(tmp_path, 300, 1)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        hf_tokenizer.read(tmp_path, 300, 1)


def test_sentencepiece_models_without_an_exact_equivalent(tmp_path):
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=100, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    with pytest.raises(UserError, match="has no exact tokenizer.json"):
        hf_tokenizer.write(tmp_path, SentencePieceTokenizer(model.getvalue()), 64)


def test_the_chat_template_goes_with_the_tokenizer(tmp_path):
    tokenizer = load_huggingface(byte_level(tmp_path / "tokenizer"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert hf_tokenizer.copy_template(tmp_path / "a", tmp_path / "b", tokenizer) == []
    assert not list((tmp_path / "b").iterdir())
    (tmp_path / "a" / "chat_template.jinja").write_text("{{ messages }}é")
    (note,) = hf_tokenizer.copy_template(tmp_path / "a", tmp_path / "b", BytesTokenizer())
    assert "not exported" in note and not list((tmp_path / "b").iterdir())
    assert hf_tokenizer.copy_template(tmp_path / "a", tmp_path / "b", tokenizer) == []
    assert (tmp_path / "b" / "chat_template.jinja").read_text() == "{{ messages }}é"
