"""New tokens as text: after the tokens before them, in complete characters."""

import pytest

from paxlike.data.tokenizer import BytesTokenizer, SentencePieceTokenizer, train_sentencepiece
from paxlike.infer.stream import CONTEXT, TextStream, continuation

BYTES = BytesTokenizer()


class WithDummyPrefix:
    """Pieces that begin with a space; the space of the first decoded piece is dropped."""

    def decode(self, ids):
        return "".join(f" w{id_}" for id_ in ids)[1:]


def test_incomplete_characters_are_held_back_and_nothing_is_lost():
    text = "naïve 🙂 end"
    stream = TextStream(BYTES)
    parts = [stream.add(token) for token in BYTES.encode(text).tolist()]
    assert "".join(parts) == text and not any("\ufffd" in part for part in parts)
    half = BYTES.encode("🙂").tolist()[:2]
    assert [stream.add(token) for token in half] == ["", ""]
    assert stream.rest() == "\ufffd"


def test_a_space_is_kept_after_other_tokens():
    stream = TextStream(WithDummyPrefix(), [1])
    assert stream.peek(7) == " w7"
    assert [stream.add(token) for token in range(40)] == [f" w{k}" for k in range(40)]
    assert continuation(WithDummyPrefix(), [1], [2, 3]) == " w2 w3"
    assert continuation(WithDummyPrefix(), [], [2, 3]) == "w2 w3"


def test_sentencepiece_with_a_dummy_prefix():
    """As in Llama 2's tokenizer."""
    from sentencepiece import sentencepiece_model_pb2

    made = train_sentencepiece(["import numpy as np\nimport jax\n"] * 20, 300)
    proto = sentencepiece_model_pb2.ModelProto.FromString(made.model)
    proto.normalizer_spec.add_dummy_prefix = True
    tokenizer = SentencePieceTokenizer(proto.SerializeToString())
    tokens = tokenizer.encode("import numpy as np import jax").tolist()
    for cut in range(1, len(tokens)):
        before = tokenizer.decode(tokens[:cut])
        assert before + continuation(tokenizer, tokens[:cut], tokens[cut:]) == tokenizer.decode(
            tokens
        )


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_prompt_that_ends_inside_of_a_character(cut):
    tokens = BYTES.encode("é漢😀\ufffdab").tolist()
    whole = BYTES.decode(tokens)
    before = BYTES.decode(tokens[:cut]).rstrip("\ufffd")
    after = continuation(BYTES, tokens[:cut], tokens[cut:])
    assert whole.endswith(after) and (before + after).replace("\ufffd", "") in (
        whole.replace("\ufffd", "")
    )


def test_bytes_that_form_no_character_are_not_held_back_forever():
    stream = TextStream(BYTES)
    bad = [0xFF + 3] * (3 * CONTEXT)
    shown = "".join(stream.add(token) for token in bad)
    assert len(shown) >= len(bad) - 4 and shown + stream.rest() == "\ufffd" * len(bad)
