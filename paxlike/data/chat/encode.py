"""The token ids of a rendered conversation, and which of them are predicted.

The text of the generation prompt and the text of the assistant's turn are encoded apart, as they
are when the model generates. So the boundary between them is exact.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from paxlike.data.chat.rendering import Part
from paxlike.data.tokenizer import Tokenizer, encode_rest


class Encoded(NamedTuple):
    """The tokens of a conversation."""

    ids: np.ndarray
    """int32"""
    predicted: np.ndarray
    """uint8: 1 if the token is predicted."""


def encode_parts(tokenizer: Tokenizer, parts: Sequence[Part]) -> Encoded:
    """The ids are those of the library `tokenizers` for the whole text, except where a token would
    contain both the end of a prompt and the beginning of an answer."""
    ids: list[np.ndarray] = [np.zeros(0, np.int32)]
    predicted: list[np.ndarray] = [np.zeros(0, np.uint8)]
    before = ""
    for text, special, is_predicted in _without_taken(parts):
        if special:
            new, before = np.array([special.id], np.int32), ""
        else:
            new = _text_ids(tokenizer, before, text)
            before += text
        ids.append(new)
        predicted.append(np.full(len(new), is_predicted, np.uint8))
    return Encoded(np.concatenate(ids), np.concatenate(predicted))


def _without_taken(parts: Sequence[Part]) -> list[Part]:
    """The parts without whitespace that belongs to a special token."""
    found: list[Part] = []
    taking = False
    for part in parts:
        if part.special:
            while part.special.takes_before and found and not found[-1].special:
                found[-1] = found[-1]._replace(text=found[-1].text.rstrip())
                if found[-1].text:
                    break
                found.pop()
            taking = part.special.takes_after
        elif taking:
            part = part._replace(text=part.text.lstrip())
            taking = not part.text
        if part.special or part.text:
            found.append(part)
    return found


def _text_ids(tokenizer: Tokenizer, before: str, text: str) -> np.ndarray:
    """The ids of a text after another one without a special token between them."""
    if tokenizer.lossless or not before:
        return tokenizer.encode(text)
    # A tokenizer that puts a space before every text does not do so here.
    known, whole = tokenizer.encode(before), tokenizer.encode(before + text)
    if np.array_equal(whole[: len(known)], known):
        return whole[len(known) :]
    return encode_rest(tokenizer, text)
