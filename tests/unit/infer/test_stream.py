from paxlike.data.tokenizer import BytesTokenizer
from paxlike.infer.stream import TextStream


def test_incomplete_characters_are_held_back_and_nothing_is_lost():
    tokenizer = BytesTokenizer()
    text = "naïve 🙂 end"
    shown = []
    stream = TextStream(tokenizer.decode, shown.append)
    for token in tokenizer.encode(text).tolist():
        stream.add(token)
    assert "".join(shown) == text and not any("�" in part for part in shown)
    half = tokenizer.encode("🙂").tolist()[:2]
    for token in half:
        stream.add(token)
    assert "".join(shown) == text
    stream.close()
    assert "".join(shown).startswith(text + "�")
