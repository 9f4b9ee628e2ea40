"""The special tokens of a tokenizer, as chat templates write them."""

import functools
import re
from dataclasses import dataclass
from typing import NamedTuple

from paxlike.data.chat.marks import ANY_MARK, END_NAME
from paxlike.data.huggingface_tokenizer import HuggingFaceTokenizer
from paxlike.data.tokenizer import Tokenizer


class Special(NamedTuple):
    """A special token."""

    id: int
    takes_before: bool = False
    """Whether whitespace before it belongs to it (`lstrip` of the library `tokenizers`)."""
    takes_after: bool = False


@dataclass(frozen=True)
class SpecialTokens:
    """What a template may write and read."""

    tokens: dict[str, Special]
    """By text."""
    variables: dict[str, str]
    """Variables of templates, such as bos_token and eos_token."""

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the texts of special tokens, the longest first."""
        texts = sorted(self.tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    @functools.cached_property
    def or_mark(self) -> re.Pattern[str]:
        """Matches those, or a mark, as the group `mark`."""
        return re.compile(f"(?P<mark>{ANY_MARK.pattern})|(?:{self.pattern.pattern})")


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Those of the tokenizer. One without special texts has the end of a document only."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return SpecialTokens(
            {END_NAME: Special(tokenizer.eod)}, {"bos_token": "", "eos_token": END_NAME}
        )
    tokens = {
        text: Special(id_, before, after) for text, id_, before, after in tokenizer.special_tokens
    }
    named = tokenizer.named_tokens
    end = next((text for text, token in tokens.items() if token.id == tokenizer.eod), None)
    return SpecialTokens(
        tokens if end else {**tokens, END_NAME: Special(tokenizer.eod)},
        {"bos_token": "", "eos_token": end or END_NAME, **named},
    )
