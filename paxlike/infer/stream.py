"""Tokens as text while they arrive."""

from collections.abc import Callable


class TextStream:
    """Turns tokens into text that can be shown at once: half a character waits for its other half."""

    def __init__(self, decode: Callable[[list[int]], str], show: Callable[[str], None]):
        self._decode, self._show = decode, show
        self._tokens: list[int] = []
        self._shown = ""

    def add(self, token: int) -> None:
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if not text.endswith("�"):
            self._rest(text)

    def close(self) -> None:
        """Shows what is left, such as bytes that are no character."""
        self._rest(self._decode(self._tokens))

    def _rest(self, text: str) -> None:
        self._show(text[len(self._shown) :])
        self._shown = text
