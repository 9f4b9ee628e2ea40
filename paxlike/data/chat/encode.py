"""The token ids of rendered conversations, and which of them are predicted.

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


def encode_parts(tokenizer: Tokenizer, conversations: Sequence[Sequence[Part]]) -> list[Encoded]:
    """The tokens of conversations, which are encoded together, on all cores.

    The ids are those of the library `tokenizers` for the whole text, except where a token would
    contain both the end of a prompt and the beginning of an answer.
    """
    kept = [_without_taken(parts) for parts in conversations]
    # A tokenizer that puts a space before every text does not do so inside of one.
    alone = [
        [tokenizer.lossless or not n or parts[n - 1].special is not None for n in range(len(parts))]
        for parts in kept
    ]
    texts = [
        part.text
        for parts, flags in zip(kept, alone, strict=True)
        for part, is_alone in zip(parts, flags, strict=True)
        if is_alone and not part.special
    ]
    encoded = iter(tokenizer.encode_batch(texts))
    found = []
    for parts, flags in zip(kept, alone, strict=True):
        ids: list[np.ndarray] = [np.zeros(0, np.int32)]
        before = ""
        for part, is_alone in zip(parts, flags, strict=True):
            if part.special:
                ids.append(np.array([part.special.id], np.int32))
                before = ""
            else:
                ids.append(
                    next(encoded) if is_alone else _continued_ids(tokenizer, before, part.text)
                )
                before += part.text
        lengths = [len(one) for one in ids[1:]]
        predicted = np.repeat(np.array([part.predicted for part in parts], np.uint8), lengths)
        found.append(Encoded(np.concatenate(ids), predicted))
    return found


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


def _continued_ids(tokenizer: Tokenizer, before: str, text: str) -> np.ndarray:
    """The ids of a text after another one without a special token between them."""
    known, whole = tokenizer.encode(before), tokenizer.encode(before + text)
    if np.array_equal(whole[: len(known)], known):
        return whole[len(known) :]
    return encode_rest(tokenizer, text)
