"""`data show`: documents and predicted tokens, with and without color."""

import io

import pytest
from chat_cases import CONVERSATIONS, TURNS, messages, tokenizer_folder, write_lines
from rich.console import Console

from paxlike.config import UserError
from paxlike.data import show
from paxlike.data.prepare import PrepareConfig, prepare


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    path = write_lines(
        folder / "a.jsonl", [{"messages": messages(turns)} for turns in CONVERSATIONS.values()]
    )
    return prepare(
        PrepareConfig(
            (str(path),), str(folder / "store"), tokenizer=str(tokenizer_folder(folder / "t")),
            format="messages", template="chatml", sequence_length=256, validation_fraction=0.1,
        )
    )  # fmt: skip


def printed(store, start=0, count=99, split="train", **console) -> str:
    file = io.StringIO()
    show.show(store, split, start, count, Console(file=file, width=60, **console))
    return file.getvalue()


def test_predicted_tokens_are_in_brackets(chats):
    text = printed(chats) + printed(chats, split="validation")
    (system,) = [part for part in text.split("──") if "Be brief" in part]
    assert system.strip() == (
        "<|im_start|>system\nBe brief, <|im_end|>.<|im_end|>\n"
        "<|im_start|>user\nWhat is 漢字 + 1?<|im_end|>\n"
        "<|im_start|>assistant\n⟦It is é😀.\n\nYes.<|im_end|>⟧\n"
        "<|im_start|>user\n<|im_end|> and <|eot_id|> are text; so is <|end_of_text|><|im_end|>\n"
        "<|im_start|>assistant\n⟦<|im_start|>assistant\nalso text<|im_end|>⟧"
    )
    assert text.count("tokens: the predicted ones are in ⟦ ⟧") == 2


def test_samples_and_start(chats):
    whole = printed(chats).split("\n── ")[1:]
    assert len(whole) == chats.manifest.splits["train"].documents
    for start in range(len(whole)):
        assert printed(chats, start, 2).split("\n── ")[1:] == whole[start : start + 2]
    with pytest.raises(UserError, match=f"--start is {len(whole)}; the train split of .* 0 to"):
        printed(chats, len(whole))


def test_with_color_there_are_no_brackets(chats):
    text = printed(chats, force_terminal=True, color_system="standard", no_color=False)
    assert "⟦" not in text and "\x1b[1;32m" in text and TURNS[1][1].split("\n")[-1] in text


@pytest.mark.parametrize("packing", ["split", "whole"])
def test_ordinary_stores(packing, tmp_path, monkeypatch):
    monkeypatch.setattr(show, "_SLAB", 7)
    texts = [f"text {n} é" for n in range(9)]
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    length = 40 if packing == "whole" else 0
    store = prepare(
        PrepareConfig(
            (str(path),), str(tmp_path / "store"), tokenizer="bytes", packing=packing,
            sequence_length=length, validation_fraction=0.01,
        )
    )  # fmt: skip
    whole = printed(store)
    assert "all are predicted" in whole and "⟦" not in whole
    shown = [part.split("\n")[1] for part in whole.split("\n── ")[1:]]
    held = printed(store, split="validation").split("\n── ")[1:]
    shown += [part.split("\n")[1] for part in held]
    assert sorted(shown) == [f"{text}<end of document>" for text in texts]
    later = printed(store, 5, 1).split("\n── ")[1:]
    assert later == whole.split("\n── ")[6:7] or later[0].strip() == whole.split("\n── ")[6].strip()
    monkeypatch.setattr(show, "LONGEST", 4)
    assert "text … and 6 more tokens" in printed(store, 0, 1)
