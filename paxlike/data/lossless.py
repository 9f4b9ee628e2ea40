"""Whether a tokenizer reproduces every text."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

SPACE_MARK = "\u2581"
"""SentencePiece writes a space as this character, and so confuses the character with a space."""
PROBE = f" a\tb  \r\n\n    1234 \x00\x1f {SPACE_MARK} \ufb01\u2460e\u0301 \U0001f600\n "
"""A text that no tokenizer reproduces if it normalizes, strips, joins or drops anything."""


class _Tokenizer(Protocol):
    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: Iterable[int]) -> str: ...


def is_lossless(tokenizer: _Tokenizer) -> bool:
    return tokenizer.decode(tokenizer.encode(PROBE)) == PROBE
