"""OpenAI's completions protocol: requests and error objects."""

import dataclasses
import json
import secrets
from collections.abc import Sequence
from typing import Any

from paxlike.data.tokenizer import Tokenizer
from paxlike.infer.slots import ALTERNATIVES, Settings
from paxlike.infer.stream import prompt_tokens

MOST_TEXTS = 128
"""Maximum number of texts of a request: prompts times `n`."""


class ProtocolError(Exception):
    """An error object with an HTTP status."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def as_dict(self) -> dict:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        }


@dataclasses.dataclass(frozen=True)
class Asked:
    """A valid request. Fields as in the protocol."""

    prompts: list[list[int]]
    max_tokens: int
    temperature: float
    top_p: float
    n: int
    stream: bool
    include_usage: bool
    logprobs: int | None
    stop: tuple[str, ...]
    seed: int
    echo: bool = False
    stop_tokens: tuple[int, ...] = ()
    """Tokens that end a text, besides the end of a document."""
    model: str = ""
    """The name of the base or of an adapter."""

    def settings(self, choice: int) -> Settings:
        return Settings(self.temperature, self.top_p, (self.seed + choice) % 2**32)


_FIELDS = {
    "model", "prompt", "max_tokens", "temperature", "top_p", "n", "stream", "stream_options",
    "logprobs", "stop", "seed", "echo",
}  # fmt: skip
_IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
"""Fields that do not change the result."""
_NEUTRAL: dict[str, tuple] = {
    "suffix": ("",), "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},),
    "best_of": (1,), "top_k": (0, -1), "min_p": (0,), "min_tokens": (0,), "ignore_eos": (False,),
    "repetition_penalty": (1,), "length_penalty": (1,), "response_format": ({"type": "text"},),
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "modalities": (["text"],),
}  # fmt: skip
"""Unsupported field -> its values without an effect, which are accepted."""


def parse(body: bytes, models: Sequence[str], tokenizer: Tokenizer, max_length: int) -> Asked:
    """Parses the body of a request; null means absent. Raises ProtocolError naming the field."""
    given = fields_of(body)
    check_fields(given, models, _FIELDS)
    echo = flag(given, "echo")
    asked = Asked(
        model=given.get("model", models[0]),
        echo=echo,
        prompts=_prompts(given.get("prompt"), tokenizer),
        max_tokens=number(given, "max_tokens", 16, 0 if echo else 1, max_length, int),
        temperature=number(given, "temperature", 1.0, 0, 2, float),
        top_p=number(given, "top_p", 1.0, 0, 1, float),
        n=number(given, "n", 1, 1, MOST_TEXTS, int),
        stream=flag(given, "stream"),
        include_usage=include_usage(given),
        logprobs=number(given, "logprobs", None, 0, ALTERNATIVES, int),
        stop=stop_texts(given),
        seed=seed_of(given),
    )
    if len(asked.prompts) * asked.n > MOST_TEXTS:
        raise ProtocolError(
            400,
            f"{len(asked.prompts)} prompts times n {asked.n} is more than {MOST_TEXTS} texts.",
            "n",
        )
    check_length(max(map(len, asked.prompts)), asked.max_tokens, max_length, "prompt")
    return asked


def check_fields(given: dict, models: Sequence[str], known: set[str]) -> None:
    """Raises ProtocolError for another model, or a field that would change the result."""
    if (name := given.get("model", models[0])) not in models:
        raise unknown_model(name, models)
    for name, value in given.items():
        if name not in known | _IGNORED and value not in _NEUTRAL.get(name, ()):
            raise ProtocolError(400, f"{name} is not supported.", name, "unsupported_parameter")


def unknown_model(name: Any, models: Sequence[str]) -> ProtocolError:
    has = ", ".join(map(repr, models))
    message = f"unknown model {name!r}; this server has {has}."
    return ProtocolError(404, message, "model", "model_not_found")


def stop_texts(given: dict) -> tuple[str, ...]:
    """The field `stop`. Raises ProtocolError."""
    stop = given.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stop, list)
        or len(stop) > 4
        or not all(isinstance(text, str) and text for text in stop)
    ):
        raise ProtocolError(400, "stop must be a string, or a list of up to 4 of them.", "stop")
    return tuple(stop)


def include_usage(given: dict) -> bool:
    """The field `stream_options.include_usage`. Raises ProtocolError."""
    options = given.get("stream_options", {})
    if not isinstance(options, dict):
        raise ProtocolError(400, "stream_options must be an object.", "stream_options")
    return flag(options, "include_usage")


def seed_of(given: dict) -> int:
    """The field `seed`; a new one if it is absent."""
    return number(given, "seed", secrets.randbits(32), -(2**63), 2**63 - 1, int)


def check_length(prompt: int, new: int, most: int, field: str) -> None:
    """Raises ProtocolError if a prompt and its new tokens exceed the model's context."""
    if prompt + new > most:
        raise ProtocolError(
            400,
            f"the model's context is {most} tokens; the prompt has {prompt} and max_tokens is "
            f"{new}.",
            field,
            "context_length_exceeded",
        )


def fields_of(body: bytes) -> dict:
    """The fields of the body that are not null."""
    try:
        given = json.loads(body)
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ProtocolError(
            400, f"the body has text that is not valid Unicode: {error.reason}."
        ) from None
    except ValueError as error:
        raise ProtocolError(400, f"the body is not valid JSON: {error}.") from None
    except RecursionError:
        raise ProtocolError(400, "the body is nested too deeply.") from None
    if not isinstance(given, dict):
        raise ProtocolError(400, "the body must be a JSON object.")
    return {name: value for name, value in given.items() if value is not None}


def number(given: dict, name: str, default: Any, least: float, most: float, kind: type) -> Any:
    """A number in a range. Raises ProtocolError."""
    value = given.get(name)
    if value is None:
        return default
    right = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not right or not least <= value <= most:
        raise ProtocolError(
            400, f"{name} is {value!r}; it must be a number from {least} to {most}.", name
        )
    return kind(value)


def flag(given: dict, name: str) -> bool:
    """A boolean; False if absent. Raises ProtocolError."""
    value = given.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ProtocolError(400, f"{name} is {value!r}; it must be true or false.", name)
    return value


def _prompts(given: Any, tokenizer: Tokenizer) -> list[list[int]]:
    """Prompts as tokens: a string, token ids, or a list of either. An empty text becomes the
    end-of-document token.
    """
    one = isinstance(given, str) or (
        isinstance(given, list) and given and all(type(token) is int for token in given)
    )
    prompts = []
    for prompt in [given] if one else given if isinstance(given, list) else []:
        if isinstance(prompt, str):
            prompts.append(prompt_tokens(tokenizer, prompt))
        elif (
            isinstance(prompt, list)
            and prompt
            and all(type(t) is int and 0 <= t < tokenizer.vocab_size for t in prompt)
        ):
            prompts.append(prompt)
        else:
            raise ProtocolError(
                400,
                f"a prompt must be a string, or token ids from 0 to {tokenizer.vocab_size - 1}.",
                "prompt",
            )
    if not prompts:
        raise ProtocolError(
            400,
            "prompt must be a string, a list of strings, token ids, or a list of lists of them.",
            "prompt",
        )
    return prompts
