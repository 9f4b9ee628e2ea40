"""Tokens as text while they arrive."""

from collections.abc import Callable


class TextStream:
    """Decodes tokens to text as they arrive, holding back incomplete characters."""

    def __init__(self, decode: Callable[[list[int]], str], show: Callable[[str], None]):
        self._decode, self._show = decode, show
        self._tokens: list[int] = []
        self._shown = ""

    def add(self, token: int) -> None:
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if not text.endswith("�"):
            self._show_rest(text)

    def close(self) -> None:
        """Shows the remaining text, such as bytes that do not form a character."""
        self._show_rest(self._decode(self._tokens))

    def _show_rest(self, text: str) -> None:
        self._show(text[len(self._shown) :])
        self._shown = text
