"""Conversations as lists of messages, from the formats that fine-tuning data comes in.

| format | a record |
|---|---|
| messages | {"messages": [{"role", "content"}, ...]} |
| sharegpt | {"conversations": [{"from", "value"}, ...]} |
| alpaca | {"instruction", "input", "output"}, optionally "system" |
| prompt-completion | {"prompt", "completion"}: two texts, or two lists of messages |
"""

import re
from typing import Literal, NamedTuple

from paxlike.data.bad_lines import BadLineError, shown_names

Format = Literal["text", "messages", "sharegpt", "alpaca", "prompt-completion"]
ROLES = ("system", "user", "assistant", "tool")
_OPENAI = {**{role: role for role in ROLES}, "developer": "system"}
_SHAREGPT = {
    **_OPENAI, "human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bot": "assistant", "observation": "tool", "function_response": "tool",
}  # fmt: skip
_NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
"""Code points that Unicode reserves for internal use; templates are rendered with them."""


class Message(NamedTuple):
    """One turn."""

    role: str
    """One of ROLES."""
    content: str
    predicted: bool
    """Whether the model learns to write it."""


COLUMNS: dict[Format, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "messages": (("messages",), ()),
    "sharegpt": (("conversations",), ()),
    "alpaca": (("instruction", "output"), ("input", "system")),
    "prompt-completion": (("prompt", "completion"), ()),
}
"""Format -> (fields that a record must have, fields that it may have)."""


def columns(format: Format, field: str = "") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The fields that are read: those that must exist, and those that may. field: see `--field`."""
    return ((field,), ()) if field else COLUMNS[format]


def read_messages(record: dict, format: Format, field: str = "") -> list[Message]:
    """The turns of a record.

    field: where the turns are, if not under the format's usual name. Raises BadLineError for a
    record of another format, an unknown role, an empty turn, or no assistant's turn.
    """
    if format in ("messages", "sharegpt"):
        (name,) = columns(format, field)[0]
        return checked(_turns(_value(record, name, format), name, format))
    if format == "alpaca":
        return checked(_alpaca(record))
    prompt, completion = _value(record, "prompt", format), _value(record, "completion", format)
    if isinstance(prompt, str) and isinstance(completion, str):
        return checked([Message("user", prompt, False), Message("assistant", completion, True)])
    given = [one._replace(predicted=False) for one in _turns(prompt, "prompt", format)]
    return checked([*given, *_turns(completion, "completion", format)])


def read_turns(values: object) -> list[Message]:
    """The turns of a request, in OpenAI's format. Raises BadLineError."""
    return _checked_turns(_turns(values, "messages", "messages"))


def is_texts(record: dict) -> bool:
    """Whether the prompt and the completion of a record are texts, rather than messages."""
    return isinstance(record.get("prompt"), str) and isinstance(record.get("completion"), str)


def checked(messages: list[Message]) -> list[Message]:
    """The turns, if they are a conversation to learn from. Raises BadLineError."""
    _checked_turns(messages)
    if not any(message.predicted for message in messages):
        roles = ", ".join(message.role for message in messages) or "none"
        raise BadLineError("no_answer", f"there is no assistant's turn; the turns are: {roles}")
    if messages[0].role == "assistant":
        raise BadLineError("no_prompt", "the first turn is the assistant's")
    return messages


def _checked_turns(messages: list[Message]) -> list[Message]:
    for number, message in enumerate(messages, 1):
        if not message.content.strip():
            raise BadLineError("empty_turn", f"turn {number} ({message.role}) has no text")
        try:
            message.content.encode()
        except UnicodeEncodeError as error:
            half = ord(message.content[error.start])
            raise BadLineError(
                "lone_surrogate",
                f"turn {number} has half a surrogate pair (U+{half:04X}), which is not a character",
            ) from None
        if _NONCHARACTERS.search(message.content):
            raise BadLineError(
                "noncharacter", f"turn {number} has a code point from U+FDD0 to U+FDEF"
            )
    return messages


def _value(record: dict, name: str, format: Format) -> object:
    value: object = record
    for part in [name] if name in record else name.split("."):
        if not isinstance(value, dict) or value.get(part) is None:
            found = "is null" if isinstance(value, dict) and part in value else "is missing"
            raise BadLineError(
                "other_format",
                f"{name!r} of format {format} {found}; the fields are {shown_names(record)}",
            )
        value = value[part]
    return value


def _turns(values: object, name: str, format: Format) -> list[Message]:
    if not isinstance(values, list) or not values:
        kind = "empty" if values == [] else f"of type {type(values).__name__}"
        raise BadLineError("other_format", f"{name!r} is {kind}, not a list of messages")
    who, what = ("from", "value") if format == "sharegpt" else ("role", "content")
    known = _SHAREGPT if format == "sharegpt" else _OPENAI
    messages = []
    for number, turn in enumerate(values, 1):
        if not isinstance(turn, dict) or turn.get(who) is None or what not in turn:
            found = shown_names(turn) if isinstance(turn, dict) else repr(turn)[:40]
            raise BadLineError(
                "other_format", f"turn {number} has no {who!r} and {what!r}; it has {found}"
            )
        if turn.get("tool_calls"):
            raise BadLineError(
                "tool_calls", f"turn {number} has tool_calls, which are not supported"
            )
        if (role := known.get(turn[who]) if isinstance(turn[who], str) else None) is None:
            raise BadLineError(
                "unknown_role",
                f"turn {number} has the {who} {turn[who]!r}; known are {', '.join(known)}",
            )
        messages.append(Message(role, _text(turn[what], number), role == "assistant"))
    return messages


def _text(content: object, number: int) -> str:
    """The text of a content: a string, or a list of text parts as in OpenAI's messages."""
    if content is None:
        return ""
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type", "text") == "text" for part in content
    ):
        content = "".join(str(part.get("text") or "") for part in content)
    if not isinstance(content, str):
        raise BadLineError(
            "not_a_text", f"the content of turn {number} is {repr(content)[:60]}, not a text"
        )
    return content


def _alpaca(record: dict) -> list[Message]:
    found = {}
    for name in ("instruction", "input", "output", "system"):
        optional = name in ("input", "system") and record.get(name) is None
        value = "" if optional else _value(record, name, "alpaca")
        if not isinstance(value, str):
            raise BadLineError("not_a_text", f"{name!r} is {repr(value)[:60]}, not a text")
        found[name] = value
    asked = found["instruction"] + ("\n\n" + found["input"] if found["input"] else "")
    system = [Message("system", found["system"], False)] if found["system"] else []
    return [*system, Message("user", asked, False), Message("assistant", found["output"], True)]
