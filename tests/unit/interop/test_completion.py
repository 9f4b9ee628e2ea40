"""What a request may say, and where a text ends."""

import dataclasses
import json

import pytest

from paxlike.data.tokenizer import BytesTokenizer
from paxlike.interop.completion import Asked, ProtocolError, parse
from paxlike.interop.completion_text import Text

TOKENIZER = BytesTokenizer()


def parsed(**fields):
    return parse(json.dumps({"prompt": "ab", **fields}).encode(), ["mine"], TOKENIZER, 64)


def test_defaults_are_the_protocols():
    asked = parsed()
    assert asked.prompts == [[100, 101]]
    assert (
        asked.max_tokens,
        asked.temperature,
        asked.top_p,
        asked.n,
        asked.stream,
        asked.logprobs,
    ) == (
        16,
        1,
        1,
        1,
        False,
        None,
    )


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", [[100]]),
        (["a", "b"], [[100], [101]]),
        ([5, 6], [[5, 6]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
        ("", [[1]]),
    ],
)
def test_prompts(prompt, expected):
    assert parsed(prompt=prompt).prompts == expected


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"prompt": None}, 400, "prompt", "prompt must be"),
        ({"prompt": []}, 400, "prompt", "prompt must be"),
        ({"prompt": [[]]}, 400, "prompt", "token ids from 0 to 258"),
        ({"prompt": [259]}, 400, "prompt", "token ids from 0 to 258"),
        ({"prompt": [True]}, 400, "prompt", "token ids"),
        (
            {"prompt": "x" * 60},
            400,
            "prompt",
            "the model's context is 64 tokens; the prompt has 60",
        ),
        ({"max_tokens": 0}, 400, "max_tokens", "from 1 to 64"),
        ({"max_tokens": 2.5}, 400, "max_tokens", "from 1 to 64"),
        ({"max_tokens": True}, 400, "max_tokens", "from 1 to 64"),
        ({"temperature": -1}, 400, "temperature", "from 0 to 2"),
        ({"temperature": float("nan")}, 400, "temperature", "from 0 to 2"),
        ({"top_p": -0.1}, 400, "top_p", "from"),
        ({"n": 129}, 400, "n", "from 1 to 128"),
        ({"n": 65, "prompt": ["a", "b"]}, 400, "n", "more than 128 texts"),
        ({"logprobs": 6}, 400, "logprobs", "from 0 to 5"),
        ({"stream": "yes"}, 400, "stream", "true or false"),
        ({"stream_options": 3}, 400, "stream_options", "an object"),
        ({"stop": [""]}, 400, "stop", "up to 4"),
        ({"stop": ["a"] * 5}, 400, "stop", "up to 4"),
        ({"echo": 1}, 400, "echo", "true or false"),
        ({"echo": True, "max_tokens": -1}, 400, "max_tokens", "from 0 to 64"),
        ({"suffix": "x"}, 400, "suffix", "not supported"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty", "not supported"),
        ({"top_k": 5}, 400, "top_k", "not supported"),
        ({"min_tokens": 3}, 400, "min_tokens", "not supported"),
        ({"ignore_eos": True}, 400, "ignore_eos", "not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "not supported"),
        ({"best_of": 2}, 400, "best_of", "not supported"),
        ({"guided_regex": "a+"}, 400, "guided_regex", "not supported"),
        ({"model": "other"}, 404, "model", "unknown model 'other'; this server has 'mine'"),
    ],
)
def test_requests_that_cannot_be_answered(fields, status, param, message):
    with pytest.raises(ProtocolError, match=message) as caught:
        parsed(**fields)
    told = caught.value.as_dict()["error"]
    assert (caught.value.status, told["param"], told["type"]) == (
        status,
        param,
        "invalid_request_error",
    )


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
def test_bodies_that_are_no_objects(body):
    with pytest.raises(ProtocolError, match="JSON"):
        parse(body, ["mine"], TOKENIZER, 64)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"prompt": "a", "user": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
        (rb'{"prompt": "a\ud800"}', "not valid Unicode"),
        (rb'{"prompt": "a", "stop": ["\udc00"]}', "not valid Unicode"),
        (rb'{"prompt": "a", "\ud800": 1}', "not valid Unicode"),
    ],
)
def test_nesting_and_lone_surrogates_are_refused(body, message):
    with pytest.raises(ProtocolError, match=message) as caught:
        parse(body, ["mine"], TOKENIZER, 64)
    assert caught.value.status == 400


def test_null_means_absent_and_the_protocols_defaults_are_accepted():
    names = (
        "model max_tokens temperature top_p n stream stream_options logprobs stop seed echo suffix "
        "best_of presence_penalty frequency_penalty logit_bias user tools"
    ).split()
    nulls, default = parsed(**dict.fromkeys(names)), parsed()
    assert nulls.seed != parsed(seed=None).seed, "null draws a seed, as no seed does"
    assert dataclasses.replace(nulls, seed=0) == dataclasses.replace(default, seed=0)
    neutral = {
        "suffix": "", "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0.0,
        "logit_bias": {}, "top_k": -1, "min_tokens": 0, "ignore_eos": False, "user": "ada",
        "response_format": {"type": "text"}, "top_p": 0, "stop": [], "seed": 0,
    }  # fmt: skip
    asked = parsed(**neutral)
    assert asked.top_p == 0 and asked.seed == 0 and asked.stop == ()


def grown(text: str | bytes, stop=(), max_tokens=100, logprobs=None, prompt="") -> list[dict]:
    pieces: list[dict] = []
    asked = Asked([[1]], max_tokens, 0, 1, 1, False, False, logprobs, tuple(stop), 0, bool(prompt))
    one = Text(0, asked, TOKENIZER, pieces.append, TOKENIZER.encode(prompt).tolist())
    if one.asks_prompt_logprobs:
        known = [-2.0] * (len(TOKENIZER.encode(prompt)) - 1)
        one.prompt_logprobs(known, [[4]] * len(known), [[-1.0]] * len(known))
    for token in [byte + 3 for byte in (text.encode() if isinstance(text, str) else text)] + [1]:
        if one.add(token, -0.5, [token, 4], [-0.5, -2.0]):
            break
    return pieces


@pytest.mark.parametrize(
    ("text", "stop", "max_tokens", "expected", "reason"),
    [
        ("hello", (), 100, "hello", "stop"),
        ("hello", (), 3, "hel", "length"),
        ("one\n\ntwo", ("\n\n",), 100, "one", "stop"),
        ("one\ntwo", ("\n\n",), 100, "one\ntwo", "stop"),
        ("aab", ("ab",), 100, "a", "stop"),
        ("xENDy", ("END", "N"), 100, "xE", "stop"),
        ("héé😀", (), 100, "héé😀", "stop"),
        (b"a\xff", (), 100, "a\ufffd", "stop"),
        ("c漢def😀b", ("c漢",), 100, "", "stop"),
        ("c漢def😀b", ("def😀b",), 100, "c漢", "stop"),
        ("c漢def😀b", ("😀",), 100, "c漢def", "stop"),
        (b"a\xe6\xbc", ("a\ufffd",), 100, "a\ufffd", "stop"),
    ],
)
def test_where_a_text_ends(text, stop, max_tokens, expected, reason):
    pieces = grown(text, stop, max_tokens)
    assert "".join(piece["text"] for piece in pieces) == expected
    assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == [
        reason
    ] and pieces[-1]["finish_reason"]


def test_nothing_is_shown_that_may_be_taken_back():
    for piece in grown("a\nb\n\nc", ("\n\n",)):
        assert not piece["text"].endswith("\n")
    assert all("\ufffd" not in piece["text"] for piece in grown("😀é"))


def test_log_probabilities_of_every_token():
    pieces = grown("ab\xe9", logprobs=2)
    told = [piece["logprobs"] for piece in pieces]
    assert sum((one["tokens"] for one in told), []) == ["a", "b", "token:198", "token:172"]
    assert sum((one["token_logprobs"] for one in told), []) == [-0.5] * 4
    assert told[0]["top_logprobs"] == [{"a": -0.5, "\x01": -2.0}]
    assert [offset for one in told for offset in one["text_offset"]][:3] == [0, 1, 2]


def joined(pieces: list[dict], name: str) -> list:
    return sum((piece["logprobs"][name] for piece in pieces), [])


@pytest.mark.parametrize("max_tokens", [0, 2])
def test_an_echoed_prompt_begins_the_text(max_tokens):
    assert parsed(echo=True, max_tokens=max_tokens).echo and not parsed().echo
    pieces = grown("xyz", max_tokens=max_tokens, logprobs=1, prompt="é\n")
    assert "".join(piece["text"] for piece in pieces) == "é\n" + "xyz"[:max_tokens]
    assert pieces[-1]["finish_reason"] == "length"
    assert joined(pieces, "tokens") == ["token:198", "token:172", "\n", "x", "y"][: 3 + max_tokens]
    assert joined(pieces, "token_logprobs") == [None, -2.0, -2.0, -0.5, -0.5][: 3 + max_tokens]
    likely = [None, {"\x01": -1.0, "token:172": -2.0}, {"\x01": -1.0, "\n": -2.0}]
    assert joined(pieces, "top_logprobs")[:3] == likely
    assert joined(pieces, "text_offset") == [0, 0, 1, 2, 3][: 3 + max_tokens]


def test_a_stop_in_the_prompt_ends_nothing():
    pieces = grown("c\n\nd", ("\n\n",), prompt="a\n\nb\n")
    assert (
        "".join(piece["text"] for piece in pieces) == "a\n\nb\nc"
        and pieces[-1]["finish_reason"] == "stop"
    )


def test_log_probabilities_end_where_the_text_ends():
    pieces = grown("ab-END-", ("-END",), logprobs=1)
    assert "".join(piece["text"] for piece in pieces) == "ab"
    assert joined(pieces, "tokens") == ["a", "b"]
    assert joined(pieces, "text_offset") == [0, 1]
    assert joined(grown("abEND", ("abEND",), logprobs=1), "tokens") == []
    told = grown("漢", logprobs=1)
    assert joined(told, "token_logprobs") == [-0.5] * 3


def test_the_chosen_token_is_among_the_top_log_probabilities():
    pieces: list[dict] = []
    asked = Asked([[1]], 2, 0, 1, 1, False, False, 1, (), 0)
    text = Text(0, asked, TOKENIZER, pieces.append, [100])
    assert not text.add(103, -3.0, [101, 102], [-0.1, -2.0])
    assert text.add(101, -0.1, [101, 102], [-0.1, -2.0])
    assert joined(pieces, "top_logprobs") == [{"b": -0.1, "d": -3.0}, {"b": -0.1}]
