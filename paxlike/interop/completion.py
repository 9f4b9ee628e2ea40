"""OpenAI's completions protocol: requests, error objects, and texts generated token by token."""

import dataclasses
import json
import secrets
from collections.abc import Callable
from typing import Any

from paxlike.data.tokenizer import Tokenizer
from paxlike.infer.slots import ALTERNATIVES, Settings

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

    def settings(self, choice: int) -> Settings:
        return Settings(self.temperature, self.top_p, (self.seed + choice) % 2**32)


_NEUTRAL = {
    "suffix": None,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": None,
    "best_of": None,
}
"""Unsupported field -> the neutral value that is accepted."""


def parse(body: bytes, model: str, tokenizer: Tokenizer, max_length: int) -> Asked:
    """Parses the body of a request. Raises ProtocolError naming the field."""
    try:
        given = json.loads(body)
    except ValueError as error:
        raise ProtocolError(400, f"the body is not valid JSON: {error}.") from None
    if not isinstance(given, dict):
        raise ProtocolError(400, "the body must be a JSON object.")
    if (name := given.get("model", model)) != model:
        raise ProtocolError(
            404, f"unknown model {name!r}; this server has {model!r}.", "model", "model_not_found"
        )
    for name, neutral in _NEUTRAL.items():
        if given.get(name) not in (neutral, None, {}):
            raise ProtocolError(400, f"{name} is not supported.", name, "unsupported_parameter")
    stop = given.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stop, list)
        or len(stop) > 4
        or not all(isinstance(text, str) and text for text in stop)
    ):
        raise ProtocolError(400, "stop must be a string, or a list of up to 4 of them.", "stop")
    options = given.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ProtocolError(400, "stream_options must be an object.", "stream_options")
    echo = _flag(given, "echo")
    asked = Asked(
        echo=echo,
        prompts=_prompts(given.get("prompt"), tokenizer),
        max_tokens=_number(given, "max_tokens", 16, 0 if echo else 1, max_length, int),
        temperature=_number(given, "temperature", 1.0, 0, 2, float),
        top_p=_number(given, "top_p", 1.0, 1e-6, 1, float),
        n=_number(given, "n", 1, 1, MOST_TEXTS, int),
        stream=_flag(given, "stream"),
        include_usage=_flag(options, "include_usage"),
        logprobs=_number(given, "logprobs", None, 0, ALTERNATIVES, int),
        stop=tuple(stop),
        seed=_number(given, "seed", None, -(2**63), 2**63 - 1, int) or 0
        if "seed" in given
        else secrets.randbits(32),
    )
    if len(asked.prompts) * asked.n > MOST_TEXTS:
        raise ProtocolError(
            400,
            f"{len(asked.prompts)} prompts times n {asked.n} is more than {MOST_TEXTS} texts.",
            "n",
        )
    longest = max(map(len, asked.prompts))
    if longest + asked.max_tokens > max_length:
        raise ProtocolError(
            400,
            f"the model's context is {max_length} tokens; the prompt has {longest} and "
            f"max_tokens is {asked.max_tokens}.",
            "prompt",
            "context_length_exceeded",
        )
    return asked


def _number(given: dict, name: str, default: Any, least: float, most: float, kind: type) -> Any:
    value = given.get(name)
    if value is None:
        return default
    right = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if not right or not least <= value <= most:
        raise ProtocolError(
            400, f"{name} is {value!r}; it must be a number from {least} to {most}.", name
        )
    return kind(value)


def _flag(given: dict, name: str) -> bool:
    value = given.get(name) or False
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
            prompts.append(tokenizer.encode(prompt).tolist() or [tokenizer.eod])
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


class Piece(dict):
    """New output of one choice: text, logprobs (or None) and finish_reason (None until it ends)."""


class Text:
    """One choice during generation. `add` is called for each token; `tell(piece)` receives output.

    A character of several tokens is sent when it is complete. Text that may be the beginning of a
    stop string is sent when it turns out not to be one. If the prompt is echoed, it comes first.
    """

    def __init__(
        self,
        index: int,
        asked: Asked,
        tokenizer: Tokenizer,
        tell: Callable[[Piece], None],
        prompt: list[int] | None = None,
    ):
        self.index, self.asked, self.tokenizer, self.tell = index, asked, tokenizer, tell
        self.tokens: list[int] = list(prompt or []) if asked.echo else []
        self._echoed, self._begin = len(self.tokens), len(tokenizer.decode(self.tokens))
        self._shown = 0
        self._logprobs: list[tuple] = []

    @property
    def new_tokens(self) -> int:
        """Number of generated tokens."""
        return len(self.tokens) - self._echoed

    @property
    def asks_prompt_logprobs(self) -> bool:
        return self._echoed > 0 and self.asked.logprobs is not None

    def prompt_logprobs(self, logprobs: list, best: list, best_logprobs: list) -> None:
        """Sets the log-probabilities of the prompt's tokens after the first; call it before
        `add`.
        """
        first: tuple[int, float | None, list, list] = (self.tokens[0], None, [], [])
        self._logprobs = [first, *zip(self.tokens[1:], logprobs, best, best_logprobs, strict=True)]

    def add(self, token: int, logprob: float, best: list[int], best_logprobs: list[float]) -> bool:
        """Adds a token; returns True if the text has ended."""
        if self.asked.max_tokens == 0:
            self._tell(self.tokenizer.decode(self.tokens), "length")
            return True
        ended = token == self.tokenizer.eod
        if not ended:
            self.tokens.append(token)
            self._logprobs.append((token, logprob, best, best_logprobs))
        text = self.tokenizer.decode(self.tokens)
        found = [at for at in (text.find(stop, self._begin) for stop in self.asked.stop) if at >= 0]
        if found:
            self._tell(text[: min(found)], "stop")
        elif ended or self.new_tokens == self.asked.max_tokens:
            self._tell(text, "stop" if ended else "length")
        else:
            self._tell(text[: self._safe(text)], None)
            return False
        return True

    def _safe(self, text: str) -> int:
        """Number of final characters: no incomplete character, no beginning of a stop string."""
        safe = len(text.rstrip("\ufffd"))
        for stop in self.asked.stop:
            for size in range(min(len(stop) - 1, len(text) - self._begin), 0, -1):
                if text.endswith(stop[:size]):
                    safe = min(safe, len(text) - size)
                    break
        return safe

    def _tell(self, text: str, reason: str | None) -> None:
        new = text[self._shown :]
        if not new and reason is None:
            return
        values = Piece(
            index=self.index, text=new, logprobs=self._logprobs_of(), finish_reason=reason
        )
        self._shown = max(self._shown, len(text))
        self.tell(values)

    def _logprobs_of(self) -> dict | None:
        if self.asked.logprobs is None:
            return None
        values: dict = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        offsets = self._offsets(len(self.tokens) - len(self._logprobs))
        for offset, (token, logprob, best, best_logprobs) in zip(
            offsets, self._logprobs, strict=True
        ):
            values["tokens"].append(self._name(token))
            values["token_logprobs"].append(logprob)
            pairs = list(zip(best, best_logprobs, strict=True))[: self.asked.logprobs]
            values["top_logprobs"].append(
                None if logprob is None else {self._name(other): value for other, value in pairs}
            )
            values["text_offset"].append(offset)
        self._logprobs = []
        return values

    def _offsets(self, first: int) -> list[int]:
        """Offset in the text of each token from `first` on."""
        decode = self.tokenizer.decode
        if first > 0 or not self.tokenizer.lossless:
            return [len(decode(self.tokens[:end])) for end in range(first, len(self.tokens))]
        # Do not decode a long prompt again for each of its tokens.
        begin, settled, offsets = 0, 0, []
        for end in range(len(self.tokens)):
            part = decode(self.tokens[begin:end])
            offsets.append(settled + len(part))
            if part and not part.endswith("\ufffd"):
                begin, settled = end, settled + len(part)
        return offsets

    def _name(self, token: int) -> str:
        """The token's text, or its id if it is part of a character or has no text."""
        text = self.tokenizer.decode([token])
        return text if text and "\ufffd" not in text else f"token:{token}"
