"""Vocabularies both ways: the ids of each side's own encode, the texts of each side's own
decode.
"""

import pytest

from paxlike.config import UserError
from paxlike.data.seqio_vocabulary import tokenizer_of, vocabulary_of
from paxlike.data.tokenizer import SPACE_MARK, BytesTokenizer, SentencePieceTokenizer

pytestmark = pytest.mark.optional("seqio")

TEXTS = [
    "",
    " ",
    "\n",
    "a  b   c    d ",
    "\tif x:\r\n\t\treturn 1234567\r\n\r\n    # indent\n",
    "nul \x00 bell \x07 delete \x7f",
    "\U0001f600 family e\u0301 \ufb01 \u2460 \u00a0 \u3000 \ufeff",
    "<unk> <s></s> <pad> <0x41>",
    "日本語の文章には空白がありません。",
]
MARKED = f"{SPACE_MARK}a {SPACE_MARK}{SPACE_MARK} b"


@pytest.fixture(scope="module")
def model_file(sentencepiece_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    path.write_bytes(sentencepiece_tokenizer.model)
    return str(path)


def in_tensorflow(vocabulary, text: str) -> list[int]:
    import tensorflow

    dataset = tensorflow.data.Dataset.from_tensors(text).map(vocabulary.encode_tf)
    return next(dataset.as_numpy_iterator()).tolist()


@pytest.mark.parametrize("extra_ids", [0, 100])
def test_bytes_of_seqio(extra_ids):
    import seqio

    theirs = seqio.ByteVocabulary(extra_ids)
    ours = tokenizer_of(theirs)
    assert isinstance(ours, BytesTokenizer) and ours.eod == theirs.eos_id
    assert vocabulary_of(ours) == seqio.ByteVocabulary()
    for text in [*TEXTS, MARKED]:
        ids = theirs.encode(text)
        assert ours.encode(text).tolist() == ids == in_tensorflow(vocabulary_of(ours), text)
        assert ours.decode(ids) == theirs.decode(ids) == text
        assert ours.decode([*ids, 1, 0, *range(259, 259 + extra_ids)]) == text


@pytest.mark.parametrize("extra_ids", [0, 20])
def test_sentencepiece_of_seqio(model_file, extra_ids):
    import seqio

    theirs = seqio.SentencePieceVocabulary(model_file, extra_ids)
    ours = tokenizer_of(theirs)
    assert ours.vocab_size == theirs.vocab_size == 400 + extra_ids and ours.eod == theirs.eos_id
    texts = TEXTS + (["words <extra_id_0> and <extra_id_7>"] if extra_ids else [])
    for text in texts:
        ids = theirs.encode(text)
        assert ours.encode(text).tolist() == ids
        assert ours.decode(ids) == theirs.decode(ids)
        if extra_ids == 0:
            assert ours.decode(ids) == text
    if extra_ids:
        assert set(theirs.encode(texts[-1])) & set(range(400, 420)), (
            "the text should have extra ids"
        )


def test_sentencepiece_to_seqio(sentencepiece_tokenizer):
    ours = sentencepiece_tokenizer
    theirs = vocabulary_of(ours)
    assert tokenizer_of(theirs) is ours and theirs.vocab_size == 400 and theirs.eos_id == ours.eod
    assert theirs == vocabulary_of(SentencePieceTokenizer(ours.model)) and theirs != vocabulary_of(
        BytesTokenizer()
    )
    import tensorflow

    for text in [*TEXTS, MARKED]:
        ids = ours.encode(text).tolist()
        assert theirs.encode(text) == ids == in_tensorflow(theirs, text)
        assert theirs.decode(ids) == ours.decode(ids) == text
        assert theirs.decode([*ids, 1, 55, 66]) == text, "what follows the end is not the text's"
        assert theirs.decode_tf(tensorflow.constant(ids, tensorflow.int32)).numpy().decode() == text


def test_the_only_text_with_other_ids(model_file, sentencepiece_tokenizer):
    """SentencePiece takes its own mark for a space; the tokenizer here keeps it."""
    import seqio

    theirs = seqio.SentencePieceVocabulary(model_file)
    assert theirs.decode(theirs.encode(MARKED)) != MARKED
    assert tokenizer_of(theirs).decode(tokenizer_of(theirs).encode(MARKED)) == MARKED


def test_a_vocabulary_that_is_no_tokenizer():
    import seqio

    with pytest.raises(
        UserError, match="a PassThroughVocabulary has no tokenizer here.*ByteVocabulary"
    ):
        tokenizer_of(seqio.PassThroughVocabulary(100))
