"""OpenAI's chat completions protocol: requests, whole answers and the chunks of a stream."""

from collections.abc import Sequence
from typing import Any

from paxlike.data.bad_lines import BadLineError
from paxlike.data.chat.messages import Message, read_turns
from paxlike.data.chat.rendering import TemplateError
from paxlike.data.chat.template import ChatTemplate
from paxlike.infer.slots import ALTERNATIVES
from paxlike.interop.completion import (
    MOST_TEXTS,
    Asked,
    ProtocolError,
    check_fields,
    check_length,
    fields_of,
    flag,
    include_usage,
    number,
    seed_of,
    stop_texts,
)

_FIELDS = {
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n",
    "stream", "stream_options", "logprobs", "top_logprobs", "stop", "seed",
}  # fmt: skip


def parse_chat(
    body: bytes, models: Sequence[str], template: ChatTemplate | None, max_length: int
) -> Asked:
    """Parses the body of a request; null means absent. Raises ProtocolError naming the field."""
    given = fields_of(body)
    check_fields(given, models, _FIELDS)
    if template is None:
        raise ProtocolError(
            400,
            "this model has no chat template, because it was not trained on conversations. Use "
            "/v1/completions, or start the server with --template.",
            "messages",
        )
    prompt = prompt_of(given.get("messages"), template)
    limits = [given[n] for n in ("max_completion_tokens", "max_tokens") if n in given]
    if len(limits) == 2 and limits[0] != limits[1]:
        raise ProtocolError(
            400, "max_tokens and max_completion_tokens differ; give one.", "max_tokens"
        )
    check_length(len(prompt), 1, max_length, "messages")
    name = "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"
    most = number(given, name, max_length - len(prompt), 1, max_length, int)
    check_length(len(prompt), most, max_length, "messages")
    wanted, alternatives = flag(given, "logprobs"), given.get("top_logprobs")
    if alternatives is not None and not wanted:
        raise ProtocolError(400, "top_logprobs needs logprobs true.", "top_logprobs")
    return Asked(
        model=given.get("model", models[0]),
        prompts=[prompt],
        max_tokens=most,
        temperature=number(given, "temperature", 1.0, 0, 2, float),
        top_p=number(given, "top_p", 1.0, 0, 1, float),
        n=number(given, "n", 1, 1, MOST_TEXTS, int),
        stream=flag(given, "stream"),
        include_usage=include_usage(given),
        logprobs=number(given, "top_logprobs", 0, 0, ALTERNATIVES, int) if wanted else None,
        stop=stop_texts(given),
        seed=seed_of(given),
        stop_tokens=template.stops,
    )


def prompt_of(messages: Any, template: ChatTemplate) -> list[int]:
    """The ids of the messages and the generation prompt. Raises ProtocolError."""
    try:
        return template.prompt(asked_turns(messages))
    except (BadLineError, TemplateError) as error:
        raise ProtocolError(400, f"messages: {error}.", "messages") from None


def asked_turns(messages: Any) -> list[Message]:
    """The turns of a request. Raises BadLineError."""
    turns = read_turns(messages)
    if turns[-1].role == "assistant":
        raise BadLineError("no_prompt", "the last turn is the assistant's; end with a user's")
    return turns


def chat_choice(choice: dict, alternatives: int | None) -> dict:
    """A choice of a whole answer, from one of the completions protocol."""
    message = {"role": "assistant", "content": choice["text"], "refusal": None}
    return {
        "index": choice["index"],
        "message": message,
        "logprobs": _logprobs(choice["logprobs"], alternatives),
        "finish_reason": choice["finish_reason"],
    }


def chat_delta(piece: dict, first: bool, alternatives: int | None) -> dict:
    """A choice of a stream's chunk, from new output. first: whether it begins the answer."""
    delta = {"role": "assistant", "content": piece["text"]} if first else {}
    if piece["text"] and not first:
        delta = {"content": piece["text"]}
    return {
        "index": piece["index"],
        "delta": delta,
        "logprobs": _logprobs(piece["logprobs"], alternatives),
        "finish_reason": piece["finish_reason"],
    }


def _logprobs(found: dict | None, alternatives: int | None) -> dict | None:
    if found is None or alternatives is None:
        return None
    columns = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
    content = []
    for name, logprob, best in columns:
        likely = sorted((best or {}).items(), key=lambda pair: -pair[1])[:alternatives]
        content.append(
            {**_named(name, logprob), "top_logprobs": [_named(*pair) for pair in likely]}
        )
    return {"content": content, "refusal": None}


def _named(name: str, logprob: float) -> dict:
    """A token; its bytes are not known if it is part of a character (`Text._name`)."""
    known = None if name.startswith("token:") else list(name.encode())
    return {"token": name, "logprob": logprob, "bytes": known}
