"""Stores of conversations: formats, loss masks, truncation, and what is refused."""

import dataclasses
import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from chat_cases import (
    BY_HAND,
    CONVERSATIONS,
    TURNS,
    encoded,
    made_conversations,
    messages,
    tokenizer_folder,
    write_lines,
)

from paxlike.config import ConfigError, DataConfig, UserError
from paxlike.data import blocks, tables, tokenize_files
from paxlike.data.chat.named_templates import NAMED_TEMPLATES
from paxlike.data.manifest_reader import read_manifest
from paxlike.data.mixture import open_stores
from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.data.sequences import Sequences
from paxlike.data.store import open_store

LENGTH = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"), NAMED_TEMPLATES["chatml"])


@pytest.fixture
def make(tmp_path, folder):
    """make(records or file, **PrepareConfig fields): a store."""

    def made(source, name: str = "store", **fields):
        path = (
            write_lines(tmp_path / f"{name}.jsonl", source) if isinstance(source, list) else source
        )
        values = {
            "format": "messages", "tokenizer": str(folder), "sequence_length": LENGTH,
            "validation_fraction": 0.3, **fields,
        }  # fmt: skip
        return prepare(PrepareConfig((str(path),), str(tmp_path / name), **values))

    return made


def conversations(store, split) -> list[tuple[list[int], list[int]]]:
    """(ids, mask) of each segment, sorted."""
    found = []
    rows = zip(store.tokens(split), store.segments(split), store.loss_mask(split), strict=True)
    for tokens, segments, mask in rows:
        for number in range(1, int(segments.max()) + 1):
            here = segments == number
            found.append((tokens[here].tolist(), mask[here].tolist()))
    return sorted(found)


def all_conversations(store):
    return sorted(conversations(store, "train") + conversations(store, "validation"))


def test_a_store_has_the_masks_of_the_hand(make, folder):
    store = make([{"messages": messages(turns)} for turns in CONVERSATIONS.values()])
    expected = [encoded(folder, BY_HAND["chatml"](turns)) for turns in CONVERSATIONS.values()]
    assert all_conversations(store) == sorted(expected)
    store.verify()
    manifest = store.manifest
    assert manifest.packing == "whole" and manifest.sequence_length == LENGTH
    assert sum(manifest.predicted.values()) == sum(sum(mask) for _, mask in expected)
    assert sum(one.tokens for one in manifest.splits.values()) == sum(len(i) for i, _ in expected)
    assert manifest.truncated == 0 and store.chat_template == NAMED_TEMPLATES["chatml"]


def test_targets_are_the_predicted_tokens_of_the_same_conversation(make):
    store = make(made_conversations(20))
    data = DataConfig(store=str(store.folder), packing="whole", sequence_length=LENGTH)
    batch = Sequences(store, data, "train").read(range(len(store.tokens("train"))))
    mask, tokens = store.loss_mask("train"), store.tokens("train").astype(int)
    assert (batch.targets_BT[:, :-1] == np.where(mask[:, 1:] > 0, tokens[:, 1:], -1)).all()
    assert (batch.targets_BT >= 0).sum() == store.manifest.predicted["train"]
    assert (batch.segments_BT == store.segments("train")).all()


def test_formats_of_the_same_conversation_give_the_same_tokens(make, tmp_path):
    pairs = [(f"question {n}", f"answer {n} é") for n in range(5)]
    as_messages = [{"messages": messages([("user", q), ("assistant", a)])} for q, a in pairs]
    alike = {
        "sharegpt": [
            {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
            for q, a in pairs
        ],
        "alpaca": [{"instruction": q, "input": "", "output": a} for q, a in pairs],
        "prompt-completion": [
            {
                "prompt": messages([("user", q)]),
                "completion": messages([("assistant", a)]),
            }
            for q, a in pairs
        ],
    }
    expected = make(as_messages)
    for format, records in alike.items():
        found = make(records, format, format=format)
        assert all_conversations(found) == all_conversations(expected), format
        # The split is by the content of the conversation.
        assert conversations(found, "validation") == conversations(expected, "validation")
    texts = [{"prompt": q, "completion": a} for q, a in pairs]
    found = make(texts, "texts", format="prompt-completion", template="chatml")
    assert found.fingerprint == expected.fingerprint
    tables = {
        "parquet": (tmp_path / "a.parquet", as_messages),
        "nested": (tmp_path / "b.jsonl.gz", [{"x": {"turns": r["messages"]}} for r in as_messages]),
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(as_messages), tables["parquet"][0])
    lines = "".join(json.dumps(one) + "\n" for one in tables["nested"][1])
    tables["nested"][0].write_bytes(gzip.compress(lines.encode()))
    assert make(tables["parquet"][0], "parquet").fingerprint == expected.fingerprint
    nested = make(tables["nested"][0], "nested", field="x.turns")
    assert nested.fingerprint == expected.fingerprint


def test_optional_parts(make, folder):
    records = [
        {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Sum."},
        {"instruction": "Add.", "input": None, "output": "0"},
    ]
    expected = [
        [("system", "Sum."), ("user", "Add.\n\n1 2"), ("assistant", "3")],
        [("user", "Add."), ("assistant", "0")],
    ]
    hand = sorted(encoded(folder, BY_HAND["chatml"](turns)) for turns in expected)
    assert all_conversations(make(records, "alpaca", format="alpaca")) == hand
    parts = [[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "c"]
    records = [
        {"messages": messages([("developer", one), *TURNS[:2], ("user", f"{n}"), TURNS[1]])}
        for n, one in enumerate(parts)
    ]
    turns = [
        [("system", one), *TURNS[:2], ("user", f"{n}"), TURNS[1]]
        for n, one in enumerate(["ab", "c"])
    ]
    hand = sorted(encoded(folder, BY_HAND["chatml"](one)) for one in turns)
    assert all_conversations(make(records, "parts")) == hand
    # Of messages in a prompt, the assistant's turns are not learned.
    records = [
        {"prompt": messages([*TURNS[:2], ("user", f"{n}")]), "completion": messages([TURNS[1]])}
        for n in range(2)
    ]
    store = make(records, "prompts", format="prompt-completion")
    _, (_, answer) = (None, encoded(folder, BY_HAND["chatml"]([TURNS[1]])))
    assert sum(store.manifest.predicted.values()) == 2 * sum(answer)


def test_texts_are_joined_without_a_template(make, folder):
    records = [{"prompt": f"{n} + 1 = ", "completion": f"{n + 1}<|im_end|>"} for n in range(4)]
    store = make(records, format="prompt-completion")
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    expected = [
        [(begin, None, False), (None, one["prompt"], False), (None, one["completion"], True),
         (end, None, True)]
        for one in records
    ]  # fmt: skip
    assert all_conversations(store) == sorted(encoded(folder, one) for one in expected)
    assert store.chat_template is None
    lists = [{"prompt": messages(TURNS[:1]), "completion": messages(TURNS[1:2])}]
    with pytest.raises(UserError, match="jsonl:1: template: .* tokenizer_config.json has no chat_"):
        make(lists, "lists", format="prompt-completion", tokenizer="bytes")


def test_long_conversations_lose_their_end(make, folder):
    long = {"messages": messages([("user", "a b " * 40), ("assistant", "c d " * 90)])}
    silent = {"messages": messages([("user", "x y " * 150), ("assistant", "never seen")])}
    store = make([*made_conversations(6), long, silent], sequence_length=200)
    manifest = read_manifest(store.folder)
    assert manifest.truncated == 1 and manifest.dropped == {"nothing_predicted": 1}
    expected = encoded(
        folder, BY_HAND["chatml"]([("user", "a b " * 40), ("assistant", "c d " * 90)])
    )
    assert len(expected[0]) > 200
    assert (expected[0][:200], expected[1][:200]) in all_conversations(store)
    found = all_conversations(store)
    assert len(found) == 7 == sum(one.documents for one in manifest.splits.values())
    assert sum(sum(mask) for _, mask in found) == sum(manifest.predicted.values())
    assert sum(len(ids) for ids, _ in found) == sum(one.tokens for one in manifest.splits.values())


def test_masks_of_all_ones_or_zeros_are_refused(make, tmp_path):
    everything = (
        "{% generation %}{% for m in messages %}{{ m.role ~ m.content }}<|im_end|>{% endfor %}"
        "{% endgeneration %}"
    )
    (tmp_path / "all.jinja").write_text(everything)
    single = [{"messages": messages([("user", f"{n}"), ("assistant", "x")])} for n in range(3)]
    with pytest.raises(UserError, match="every token of these conversations is predicted"):
        make(single, template=str(tmp_path / "all.jinja"))
    with pytest.raises(
        UserError, match="0 of 3 conversations have a predicted token in their firs"
    ):
        make(single, sequence_length=8)
    assert not (tmp_path / "store").exists()


BAD = [
    ([("robot", "x")], "unknown role: turn 1 has the role 'robot'; known are system, user"),
    ([("user", " ")], r"empty turn: turn 1 \(user\) has no text"),
    ([("user", "x"), ("assistant", None)], r"empty turn: turn 2 \(assistant\)"),
    ([("user", "x")], "no answer: there is no assistant's turn; the turns are: user"),
    ([("assistant", "x")], "no prompt: the first turn is the assistant's"),
    ([("user", 5), ("assistant", "x")], "not a text: the content of turn 1 is 5"),
    ([("user", "\ufdd0"), ("assistant", "x")], "noncharacter: turn 1"),
    ([("user", "\ud800"), ("assistant", "x")], r"lone surrogate: turn 1 .*U\+D800"),
]


@pytest.mark.parametrize(("turns", "message"), BAD)
def test_bad_conversations(turns, message, make, tmp_path):
    records = [*made_conversations(3), {"messages": messages(turns)}]
    with pytest.raises(UserError, match=rf"store.jsonl:4: {message}.*--skip-bad-lines\.$"):
        make(records)
    store = make(records, skip_bad_lines=True)
    ((kind, count),) = store.manifest.bad_lines.items()
    assert kind.replace("_", " ") == message.split(":")[0] and count.count == 1
    assert count.first == [f"{tmp_path / 'store.jsonl'}:4"]


@pytest.mark.parametrize(
    ("fields", "record", "message"),
    [
        ({}, {"text": "x"}, "store.jsonl:1: other format: 'messages' of format messages is missing;"
         " the fields are 'text'. Choose another --format"),
        ({}, {"messages": "x"}, "'messages' is of type str, not a list of messages"),
        ({}, {"messages": []}, "'messages' is empty, not a list"),
        ({}, {"messages": [{"role": "user"}]}, "turn 1 has no 'role' and 'content'; it has 'role'"),
        ({"format": "sharegpt"}, {"conversations": [{"from": "human", "content": "x"}]},
         "turn 1 has no 'from' and 'value'"),
        ({"format": "sharegpt"}, {"conversations": [{"from": "gremlin", "value": "x"}]},
         "turn 1 has the from 'gremlin'; known are"),
        ({"format": "alpaca"}, {"instruction": "x"}, "'output' of format alpaca is missing"),
        ({"format": "prompt-completion"}, {"prompt": None, "completion": "x"},
         "'prompt' of format prompt-completion is null"),
        ({}, {"messages": [{"role": "assistant", "tool_calls": [1], "content": None}]},
         "tool calls: turn 1 has tool_calls"),
        ({"tokenizer": "bytes"}, {}, "the tokenizer has no chat template, which --format messages "
         "needs. Choose one with --template: chatml, llama3, plain, or a Jinja file"),
    ],
)  # fmt: skip
def test_records_of_another_format(fields, record, message, make):
    with pytest.raises(UserError, match=message):
        make([record, *made_conversations(2)], **fields)


def test_a_template_that_raises_or_drops_a_turn_names_the_line(make, tmp_path):
    source = "{%- for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no bad') }}"
    source += "{% endif %}{% if m.role != 'tool' %}<|im_start|>{{ m.role ~ '\\n' ~ m.content }}"
    source += "<|im_end|>{% endif %}{% endfor %}"
    source += "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
    (tmp_path / "mine.jinja").write_text(source)
    records = [*made_conversations(3), {"messages": messages([("user", "bad"), TURNS[1]])}]
    with pytest.raises(UserError, match="store.jsonl:4: template: the template raises .*no bad"):
        make(records, template=str(tmp_path / "mine.jinja"))
    records[3] = {"messages": messages(CONVERSATIONS["tool"])}
    with pytest.raises(UserError, match=r"jsonl:4: template: the template drops turn 3 \(tool\)"):
        make(records, template=str(tmp_path / "mine.jinja"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sequence_length": 0}, "Conversations are packed whole"),
        ({"packing": "split"}, "packing is 'split'"),
        ({"format": "alpaca", "field": "x"}, "fields of format alpaca are fixed"),
        ({"tokenizer": "sentencepiece"}, "no tokenizer is named"),
        ({"format": "text", "template": "chatml"}, "template chatml is for conversations"),
        ({"errors": "replace"}, "applies to texts only"),
    ],
)
def test_settings_that_do_not_fit(fields, message, make):
    with pytest.raises(ConfigError, match=message):
        make([], **fields)


def test_files_that_cannot_have_conversations(make, tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output\nx,y\n")
    with pytest.raises(UserError, match="a.csv cannot have conversations of format alpaca"):
        make(tmp_path / "a.csv", format="alpaca")
    pyarrow.parquet.write_table(pyarrow.table({"turns": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="there is no column 'messages'; the columns are 'turns'"):
        make(tmp_path / "a.parquet")


class Killed(BaseException):
    """As an end of the process: nothing handles it."""


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_interrupted_preparation_resumes(kind, make, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 300)
    monkeypatch.setattr(tables, "_RECORDS", 4)
    monkeypatch.setattr(tokenize_files, "BLOCKS_PER_RECORD", 2)
    path, records = tmp_path / f"many.{kind}", made_conversations(60)
    if kind == "jsonl":
        write_lines(path, records)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    whole = make(path, "whole")
    count = tokenize_files.count_bad_lines

    def killed(lines, counts, seen=[]):  # noqa: B006
        seen.append(1)
        if len(seen) == 7:
            raise Killed
        count(lines, counts)

    monkeypatch.setattr(tokenize_files, "count_bad_lines", killed)
    with pytest.raises(Killed):
        make(path, "resumed")
    monkeypatch.setattr(tokenize_files, "count_bad_lines", count)
    journal = json.loads((tmp_path / ".resumed.partial" / "journal.json").read_text())
    assert journal["blocks"] == 6 and journal["loss_mask"] * 2 == journal["tokens"] > 0
    assert make(path, "resumed").fingerprint == whole.fingerprint


def test_stores_of_one_mixture_have_one_template(make, tmp_path, folder):
    one, other = make(made_conversations(9)), make(made_conversations(9), "b", template="llama3")
    text = make(write_lines(tmp_path / "t.jsonl", [{"text": f"text {n} " * 9} for n in range(9)]),
                "text", format="text", packing="whole")  # fmt: skip
    data = DataConfig(packing="whole", sequence_length=LENGTH)

    def mixed(*stores):
        return open_stores(
            dataclasses.replace(data, mixture=tuple((str(store.folder), 1.0) for store in stores))
        )

    assert mixed(text, one).chat_template == one.chat_template
    with pytest.raises(ConfigError, match="have different chat templates"):
        mixed(one, other)
    assert text.chat_template is None and text.loss_mask("train") is None
    assert "predicted" not in (text.folder / "manifest.json").read_text()


def test_an_edited_manifest_is_refused(make):
    store = make(made_conversations(9))
    path = store.folder / "manifest.json"
    values = json.loads(path.read_text())
    for name, value, message in (
        ("predicted", {"train": 10**6, "validation": 0}, "predicted.train is 1000000"),
        ("predicted", {"train": 1}, "predicted has"),
        ("truncated", 99, "truncated is 99"),
    ):
        path.write_text(json.dumps({**values, name: value}))
        with pytest.raises(UserError, match=message):
            open_store(store.folder)


def test_the_tokenizer_and_template_of_a_store_or_a_run(make, tmp_path):
    first = make(made_conversations(9))
    again = make(made_conversations(9), "again", tokenizer=str(first.folder))
    assert again.fingerprint == first.fingerprint
    (tmp_path / "run").mkdir()
    (first.folder / "train.tokens").rename(tmp_path / "unused")
    first.folder.rename(tmp_path / "run" / "tokenizer")
    again = make(made_conversations(9), "run-again", tokenizer=str(tmp_path / "run"))
    assert again.fingerprint == first.fingerprint
