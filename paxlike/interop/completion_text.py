"""Texts of OpenAI's completions protocol, generated token by token."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from paxlike.data.tokenizer import Tokenizer
from paxlike.infer.stream import TextStream
from paxlike.interop.completion import Asked


class Piece(dict):
    """New output of one choice: text, logprobs (or None) and finish_reason (None until it ends)."""


class _Token(NamedTuple):
    """A token of a text that has not been sent yet."""

    offset: int
    """Where its text begins in the whole text."""
    name: str
    logprob: float | None
    best: dict[str, float] | None


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
        prompt: Sequence[int] = (),
    ):
        self.index, self.asked, self.tokenizer, self.tell = index, asked, tokenizer, tell
        self.new_tokens = 0
        """Number of generated tokens."""
        self._prompt = prompt if asked.echo else ()
        self._stream = TextStream(tokenizer, () if asked.echo else prompt)
        self._text, self._sent = "", 0
        self._tokens: list[_Token] = []
        if asked.echo and not self.asks_prompt_logprobs:
            self._text = "".join(self._stream.add(token) for token in prompt)
        self._begin = len(self._text)

    @property
    def asks_prompt_logprobs(self) -> bool:
        return len(self._prompt) > 0 and self.asked.logprobs is not None

    def prompt_logprobs(
        self, logprobs: list, best: list[list[int]], best_logprobs: list[list[float]]
    ) -> None:
        """Sets the log-probabilities of the prompt's tokens after the first; call it before
        `add`.
        """
        columns = [None, *logprobs], [[], *best], [[], *best_logprobs]
        for values in zip(self._prompt, *columns, strict=True):
            self._append(*values)
        self._begin = len(self._text)

    def add(self, token: int, logprob: float, best: list[int], best_logprobs: list[float]) -> bool:
        """Adds a token; returns True if the text has ended."""
        if self.asked.max_tokens == 0:
            self._send(self._text + self._stream.rest(), "length")
            return True
        searched, ended = len(self._text), token in (self.tokenizer.eod, *self.asked.stop_tokens)
        if not ended:
            self.new_tokens += 1
            self._append(token, logprob, best, best_logprobs)
        found = [at for stop in self.asked.stop if (at := self._find(stop, searched)) >= 0]
        if found:
            self._send(self._text[: min(found)], "stop")
        elif ended or self.new_tokens == self.asked.max_tokens:
            self._send(self._text + self._stream.rest(), "stop" if ended else "length")
        else:
            self._send(self._text[: self._safe()], None)
            return False
        return True

    def _append(
        self, token: int, logprob: float | None, best: list[int], best_logprobs: list[float]
    ) -> None:
        """Adds a token's text, and what is reported about the token."""
        if self.asked.logprobs is None:
            self._text += self._stream.add(token)
            return
        name, likely = self._name(token), None
        if logprob is not None:
            pairs = list(zip(best, best_logprobs, strict=True))[: self.asked.logprobs]
            likely = {self._name(other): value for other, value in pairs}
            likely[name] = logprob  # the protocol: also if it is not among the likeliest
        self._tokens.append(_Token(len(self._text), name, logprob, likely))
        self._text += self._stream.add(token)

    def _name(self, token: int) -> str:
        """The token's text here, or its id if it is part of a character or has no text."""
        text = self._stream.peek(token).lstrip("\ufffd")  # of the character before it
        is_part = "\ufffd" in self.tokenizer.decode([token])
        return text if text and not is_part else f"token:{token}"

    def _find(self, stop: str, searched: int) -> int:
        """Where the new text has the stop string; -1 if it does not."""
        return self._text.find(stop, max(self._begin, searched - len(stop) + 1))

    def _safe(self) -> int:
        """Number of characters that are not the beginning of a stop string."""
        safe = len(self._text)
        for stop in self.asked.stop:
            for size in range(min(len(stop) - 1, len(self._text) - self._begin), 0, -1):
                if self._text.endswith(stop[:size]):
                    safe = min(safe, len(self._text) - size)
                    break
        return safe

    def _send(self, text: str, reason: str | None) -> None:
        new = text[self._sent :]
        if not new and reason is None:
            return
        # With a stop string, the tokens after its beginning are not part of the text.
        last = reason is not None and len(text) >= len(self._text)
        count = sum(last or token.offset < len(text) for token in self._tokens)
        tokens, self._tokens = self._tokens[:count], self._tokens[count:]
        logprobs = None if self.asked.logprobs is None else _columns(tokens)
        self._sent = max(self._sent, len(text))
        self.tell(Piece(index=self.index, text=new, logprobs=logprobs, finish_reason=reason))


def _columns(tokens: list[_Token]) -> dict[str, list]:
    """The protocol's `logprobs` object."""
    return {
        "tokens": [token.name for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [token.best for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }
