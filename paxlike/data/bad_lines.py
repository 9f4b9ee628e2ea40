"""How documents are read from lines, and what happens to a line that has none: fail, or count it.

A line is bad if its document cannot be read: broken JSON, no such field, a value that is not a
string, bytes that are not UTF-8. By default it is an error; `skip_bad_lines` leaves the line out
and records its kind and place.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from paxlike.config import UserError

Errors = Literal["strict", "replace"]
BadKind = Literal[
    "broken_json",
    "nested_too_deeply",
    "missing_field",
    "null_text",
    "not_a_string",
    "not_utf8",
    "lone_surrogate",
    "broken_csv",
    "column_count",
    # Conversations.
    "other_format",
    "unknown_role",
    "empty_turn",
    "not_a_text",
    "noncharacter",
    "tool_calls",
    "no_prompt",
    "no_answer",
    "template",
]
REMEDIES: dict[BadKind, str] = {
    "broken_json": "A JSONL file has one JSON object per line: fix the line",
    "nested_too_deeply": "Flatten the line",
    "missing_field": "Name the field that holds the text with --field",
    "null_text": "Give the line a text, or name another field with --field",
    "not_a_string": "Name the field that holds the text with --field",
    "not_utf8": "Convert the file to UTF-8 (for example with iconv), "
    "replace such bytes by U+FFFD with --errors replace",
    "lone_surrogate": "Fix the line, replace it by U+FFFD with --errors replace",
    "broken_csv": "Quote fields as in RFC 4180: fix the line",
    "column_count": "Quote fields that contain commas: fix the line",
    "other_format": "Choose another --format, name the field of the turns with --field (formats "
    "messages and sharegpt)",
    "unknown_role": "Rename the role",
    "empty_turn": "Remove the turn, or give it a text",
    "not_a_text": "Give it a text: fix the line",
    "noncharacter": "Remove the code point",
    "tool_calls": "Write the calls into the content of the turn",
    "no_prompt": "Begin the conversation with a user's turn",
    "no_answer": "Remove the conversation, from which nothing can be learned",
    "template": "Fix the conversation, choose another --template",
}
_PLACES = 5
_SHOWN_NAMES = 10


@dataclass(frozen=True)
class ReadOptions:
    """How documents are read from blocks."""

    field: str = "text"
    """JSONL field, or column of a table, that holds the document."""
    errors: Errors = "strict"
    """Bytes that are not UTF-8: strict makes them an error, replace puts U+FFFD in their place."""
    skip_bad_lines: bool = False
    record: Callable[[dict], Any] | None = None
    """Makes a `Piece` of a record, for conversations. None: `field` holds a text."""
    columns: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    """Columns of a table that `record` needs, and those that it reads if they exist."""


class BadLine(NamedTuple):
    """A line, or row of a table, without a readable document."""

    kind: BadKind
    place: str
    """file:line, or file:row of a Parquet or Arrow file."""
    detail: str


class BadLineError(Exception):
    """Raised inside the readers of a line; `skip_or_fail` turns it into a BadLine or a
    UserError.
    """

    def __init__(self, kind: BadKind, detail: str):
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def skip_or_fail(error: BadLineError, place: str, options: ReadOptions) -> BadLine:
    """The skipped line. Raises UserError with place, kind and remedy unless lines may be
    skipped.
    """
    if not options.skip_bad_lines:
        raise UserError(
            f"{place}: {error.kind.replace('_', ' ')}: {error.detail}. {REMEDIES[error.kind]}, "
            "or skip bad lines with --skip-bad-lines."
        ) from None
    return BadLine(error.kind, place, error.detail)


@dataclass
class BadLineCount:
    """The skipped lines of one kind."""

    count: int
    first: list[str]
    """file:line of the first few."""


def count_bad_lines(lines: Iterable[BadLine], counts: dict[str, BadLineCount]) -> None:
    """Adds the lines, which come in the order of the files, to the counts by kind."""
    for line in lines:
        found = counts.setdefault(line.kind, BadLineCount(0, []))
        found.count += 1
        if len(found.first) < _PLACES:
            found.first.append(line.place)


def summary(counts: dict[str, BadLineCount]) -> str:
    """One line: how many lines were skipped, of which kinds, and where the first ones are."""
    kinds = [
        f"{found.count:,} {kind.replace('_', ' ')} "
        f"({', '.join(found.first)}{', …' if found.count > len(found.first) else ''})"
        for kind, found in sorted(counts.items())
    ]
    total = sum(found.count for found in counts.values())
    return f"skipped {total:,} bad line{'' if total == 1 else 's'}: {'; '.join(kinds)}"


def shown_names(names: Iterable[str]) -> str:
    """The first names of fields or columns, quoted and shortened, for a message."""
    names = list(names)
    short = [repr(name if len(name) <= 40 else name[:40] + "…") for name in names[:_SHOWN_NAMES]]
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return (", ".join(short) + more) or "none"
