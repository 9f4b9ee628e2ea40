"""Marks in a rendered template, which show where the turns and generated spans are.

They are noncharacters of Unicode, which no text of a conversation has (`messages.checked`).
"""

import re

GENERATION_BEGIN, GENERATION_END = "\ufde3", "\ufde4"
_BEGIN, _END, _CLOSE = "\ufde0", "\ufde1", "\ufde2"
_DIGITS = [chr(0xFDD0 + digit) for digit in range(10)]
_NUMBER = str.maketrans("0123456789", "".join(_DIGITS))
_MARK = re.compile(f"[{_BEGIN}{_END}][{''.join(_DIGITS)}]+{_CLOSE}")
ANY_MARK = re.compile(f"{_MARK.pattern}|{GENERATION_BEGIN}|{GENERATION_END}")
END_NAME = "\ufdeeend of document\ufdef"
"""Stands in a rendered template for the end of a document, where the tokenizer's has no text."""


def _mark(kind: str, number: int) -> str:
    return kind + str(number).translate(_NUMBER) + _CLOSE


def marked(number: int, content: str) -> str:
    """The content of turn `number` with marks around it, inside of its outer whitespace: a
    template may remove that.
    """
    core = content.strip()
    begin = content.index(core)
    return (
        content[:begin]
        + _mark(_BEGIN, number)
        + core
        + _mark(_END, number)
        + content[begin + len(core) :]
    )


def after_last_turn(rendered: str) -> str:
    """What follows the content of the last turn."""
    return without_marks(rendered[rendered.rfind(_CLOSE) + 1 :])


def meaning(mark: str) -> tuple[str, int]:
    """`begin` or `end`, and the number of the turn; or `generation begin`, `generation end`, -1."""
    if mark in (GENERATION_BEGIN, GENERATION_END):
        return ("generation begin" if mark == GENERATION_BEGIN else "generation end"), -1
    number = int("".join(str(_DIGITS.index(digit)) for digit in mark[1:-1]))
    return ("begin" if mark[0] == _BEGIN else "end"), number


def without_marks(text: str) -> str:
    return ANY_MARK.sub("", text)
