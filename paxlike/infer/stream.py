"""Tokens as text while they arrive: the only place where new tokens are decoded.

A token's text depends on the tokens before it: a tokenizer with a dummy prefix drops the space of
the first token of what it decodes, and a character can consist of several tokens. New tokens are
therefore decoded after the last few tokens before them.
"""

import os
from collections.abc import Iterable, Sequence

from paxlike.data.tokenizer import Tokenizer

CONTEXT = 8
"""Tokens before a new one that are decoded with it: more than any character has."""
_INCOMPLETE = 4
"""Maximum number of U+FFFD that the bytes of an incomplete character are decoded to."""


class TextStream:
    """The text of tokens that follow `before`, in pieces of complete characters.

    Takes constant time per token, except for long runs of bytes that form no character.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()):
        self._decode = tokenizer.decode
        self._tokens = [int(token) for token in before[-CONTEXT:]]
        self._shown = self._decode(self._tokens)

    def add(self, token: int) -> str:
        """The text that `token` completes; empty inside of a character."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        new = self._new(text[: _complete(text)])
        if new:
            self._shown = text[: _complete(text)]
        if len(self._tokens) > 2 * CONTEXT and not text.endswith("\ufffd"):
            self._tokens = self._tokens[-CONTEXT:]
            self._shown = self._decode(self._tokens)
        return new

    def peek(self, token: int) -> str:
        """What `add` would return."""
        text = self._decode([*self._tokens, token])
        return self._new(text[: _complete(text)])

    def rest(self) -> str:
        """The remaining text at the end, such as bytes that do not form a character."""
        return self._new(self._decode(self._tokens))

    def _new(self, text: str) -> str:
        if text.startswith(self._shown):
            return text[len(self._shown) :]
        if self._shown.startswith(text):
            return ""  # inside of a character that `before` begins
        return text[len(os.path.commonprefix([text, self._shown])) :]


def _complete(text: str) -> int:
    """Number of characters that no later token can change."""
    trailing = len(text) - len(text.rstrip("\ufffd"))
    return len(text) - min(trailing, _INCOMPLETE)


def continuation(tokenizer: Tokenizer, before: Sequence[int], tokens: Iterable[int]) -> str:
    """The text of `tokens` where they follow `before`."""
    stream = TextStream(tokenizer, before)
    return "".join([stream.add(int(token)) for token in tokens]) + stream.rest()


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt, after those that begin a text.

    An empty prompt without such tokens becomes the end-of-document token.
    """
    return [*tokenizer.prefix, *tokenizer.encode(prompt).tolist()] or [tokenizer.eod]
