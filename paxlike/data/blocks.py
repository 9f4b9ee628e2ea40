"""Blocks of text, JSONL and CSV files, and the documents in them. Tables: `tables.py`.

A plain text file is one document. A JSONL file has one document per line, a CSV file one per row,
in a named field. Where a document is cut into pieces depends on its text alone.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from paxlike.config import UserError
from paxlike.data.bad_lines import BadLine, BadLineError, ReadOptions, shown_names, skip_or_fail

BLOCK_BYTES = 1 << 18
_FIRST_ESCAPE = 0xDC80
"""What Python's surrogateescape decodes byte 0x80 to if it is not UTF-8."""
# A number's value is never needed, and Python refuses to parse an integer of more than 4,300
# digits.
_JSON = json.JSONDecoder(parse_int=float)
_JSON_TYPES = {dict: "an object", list: "an array", float: "a number", bool: "a boolean"}


class Piece(NamedTuple):
    """A document, or a part of one that is longer than a block."""

    text: str
    bytes: int
    hash: int | None
    """64 bits of the whole document's content. None: the document continues in the next piece."""
    first: bool
    """Whether the document begins here."""
    parts: tuple[Any, ...] = ()
    """For a conversation, its parts (`chat.rendering.Part`)."""


@dataclass(frozen=True)
class TextBlock:
    """A part of a plain text file."""

    path: Path
    offset: int
    """Byte of the (decompressed) file that it starts at."""
    first: bool
    data: bytes
    hash: int | None
    disk_bytes: int
    """Bytes of the file on disk read since the previous block."""

    def pieces(self, options: ReadOptions) -> Iterator[Piece]:
        """The one piece. Raises UserError with file and byte if it is not UTF-8 and must be."""
        try:
            text = self.data.decode("utf-8", options.errors)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path} is not UTF-8: byte 0x{self.data[error.start]:02x} at offset "
                f"{self.offset + error.start}. Convert it to UTF-8 (for example with iconv), or "
                "replace such bytes by U+FFFD with --errors replace. (A text file is one document: "
                "--skip-bad-lines does not apply to it.)"
            ) from None
        yield Piece(text, len(self.data), self.hash, self.first)


@dataclass(frozen=True)
class JsonBlock:
    """Some lines of a JSONL file."""

    path: Path
    first_line: int
    """Counted from 1."""
    lines: list[bytes]
    disk_bytes: int
    """Bytes of the file on disk read since the previous block."""

    def pieces(self, options: ReadOptions) -> Iterator[Piece | BadLine]:
        """The documents of the lines; a blank line has none.

        Raises UserError with file and line for a bad line, unless `options` skips them.
        """
        for number, line in enumerate(self.lines, self.first_line):
            if line.isspace():
                continue
            try:
                record = _json_record(line, options)
                found = (
                    document_pieces(_json_document(record, options))
                    if options.record is None
                    else [options.record(record)]
                )
            except BadLineError as error:
                yield skip_or_fail(error, f"{self.path}:{number}", options)
            else:
                yield from found


class CsvRow(NamedTuple):
    """A record of a CSV file."""

    line: int
    """The line that it starts on, counted from 1."""
    cells: list[str]
    """Bytes that are not UTF-8 are decoded with surrogateescape."""
    error: str
    """Why the row cannot be parsed; empty if it can."""


@dataclass(frozen=True)
class CsvBlock:
    """Some rows of a CSV file."""

    path: Path
    header: list[str]
    rows: list[CsvRow]
    disk_bytes: int
    """Bytes of the file on disk read since the previous block."""

    def pieces(self, options: ReadOptions) -> Iterator[Piece | BadLine]:
        """The documents of the rows. An empty cell has none.

        Raises UserError if the header does not name the column once, and with file and line for a
        bad row, unless `options` skips them.
        """
        if self.header.count(options.field) != 1:
            count = "more than one" if options.field in self.header else "no"
            raise UserError(
                f"{self.path}: {count} column is named {options.field!r}; the first line names "
                f"the columns {shown_names(self.header)}. Name the column that holds the text with "
                "--field. A CSV file needs a header line, and commas between its columns."
            )
        column = self.header.index(options.field)
        for row in self.rows:
            try:
                data = _csv_document(row, column, len(self.header), options)
            except BadLineError as error:
                yield skip_or_fail(error, f"{self.path}:{row.line}", options)
            else:
                yield from document_pieces(data)


def document_pieces(document: bytes) -> Iterator[Piece]:
    """The pieces of a document in UTF-8."""
    for offset, part, digest in cut(io.BytesIO(document)):
        yield Piece(part.decode(), len(part), digest, offset == 0)


def _json_record(line: bytes, options: ReadOptions) -> dict:
    try:
        record = _JSON.decode(line.decode("utf-8", options.errors))
    except UnicodeDecodeError as error:
        raise BadLineError(
            "not_utf8", f"byte 0x{line[error.start]:02x} at offset {error.start} of the line"
        ) from None
    except RecursionError:
        raise BadLineError("nested_too_deeply", "too many nested arrays or objects") from None
    except ValueError as error:
        raise BadLineError("broken_json", str(error)) from None
    if not isinstance(record, dict):
        found = "null" if record is None else _JSON_TYPES.get(type(record), "a string")
        raise BadLineError(
            "missing_field", f"there is no field {options.field!r}: the line is {found}"
        )
    return record


def _json_document(record: dict, options: ReadOptions) -> bytes:
    text = _field(record, options.field)
    if text is None:
        raise BadLineError("null_text", f"field {options.field!r} is null")
    if not isinstance(text, str):
        raise BadLineError(
            "not_a_string", f"field {options.field!r} is {_JSON_TYPES[type(text)]}, not a string"
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        if options.errors == "replace":
            return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
        raise BadLineError(
            "lone_surrogate",
            f"half a surrogate pair (U+{ord(text[error.start]):04X}), which is not a character",
        ) from None


def _field(record: dict, name: str) -> object:
    """The value of a field. Dots separate the names of nested fields."""
    if name in record:
        return record[name]
    value: object = record
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise BadLineError(
                "missing_field",
                f"there is no field {name!r}; the fields are {shown_names(record)}",
            )
        value = value[part]
    return value


def _csv_document(row: CsvRow, column: int, columns: int, options: ReadOptions) -> bytes:
    if row.error:
        raise BadLineError("broken_csv", row.error)
    if len(row.cells) != columns:
        raise BadLineError(
            "column_count", f"the row has {len(row.cells)} columns, the header {columns}"
        )
    if options.errors == "strict":
        for cell in row.cells:
            try:
                cell.encode()
            except UnicodeEncodeError as error:
                byte = ord(cell[error.start]) - _FIRST_ESCAPE + 0x80
                raise BadLineError("not_utf8", f"byte 0x{byte:02x}") from None
    data = row.cells[column].encode("utf-8", "surrogateescape")
    return data.decode("utf-8", "replace").encode() if options.errors == "replace" else data


def cut(stream: io.BufferedIOBase, buffer: bytes = b"") -> Iterator[tuple[int, bytes, int | None]]:
    """Cuts `buffer` and what follows it in the stream into blocks.

    Yields (offset, at most BLOCK_BYTES, 64-bit hash of everything: None before the last block).
    Yields nothing for an empty text.
    """
    offset, content = 0, hashlib.blake2b(digest_size=8)
    data = None
    while data != b"":
        data = stream.read(BLOCK_BYTES)
        buffer += data
        while len(buffer) > BLOCK_BYTES:
            end = _cut_point(buffer[:BLOCK_BYTES])
            content.update(buffer[:end])
            yield offset, buffer[:end], None
            offset, buffer = offset + end, buffer[end:]
    if buffer:
        content.update(buffer)
        yield offset, buffer, int.from_bytes(content.digest(), "little")


def _cut_point(block: bytes) -> int:
    """Where a block ends: before the last space that follows another character.

    No SentencePiece piece spans such a place, so the tokens are those of the uncut text. A text
    without spaces is cut between two characters.
    """
    end = len(block)
    while (end := block.rfind(b" ", 1, end)) > 0:
        if block[end - 1] != 0x20:
            return end
    end = len(block) - 1
    while end > len(block) - 4 and block[end] & 0xC0 == 0x80:
        end -= 1
    return end
