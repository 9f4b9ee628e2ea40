"""Documents from files, block by block, so that memory never holds a large file.

A plain text file is one document; each line of a JSONL file holds one in a named field. Both may be compressed
(.gz, .zst). Where a document is cut into blocks depends on its text alone.
"""

import glob
import gzip
import hashlib
import io
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import zstandard

from paxlike.config import UserError

BLOCK_BYTES = 1 << 18
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
Errors = Literal["strict", "replace"]


class Piece(NamedTuple):
    """A document, or a stretch of one that is longer than a block."""

    text: str
    bytes: int
    hash: int | None
    """64 bits of the whole document's content. None: the document goes on in the next piece."""


@dataclass(frozen=True)
class TextBlock:
    """A stretch of a plain text file."""

    path: Path
    offset: int
    """Byte of the (decompressed) file that it begins at."""
    data: bytes
    hash: int | None
    disk_bytes: int
    """Bytes of the file on disk read since the block before."""

    def pieces(self, field: str, errors: Errors) -> Iterator[Piece]:
        """The one piece. Raises UserError naming file and byte where it is not UTF-8 and `errors` is strict."""
        try:
            text = self.data.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise _undecodable(f"{self.path}", self.data[error.start], self.offset + error.start) from None
        yield Piece(text, len(self.data), self.hash)


@dataclass(frozen=True)
class JsonBlock:
    """Some lines of a JSONL file."""

    path: Path
    first_line: int
    """Counted from 1."""
    lines: list[bytes]
    disk_bytes: int
    """Bytes of the file on disk read since the block before."""

    def pieces(self, field: str, errors: Errors) -> Iterator[Piece]:
        """The documents in `field` of each line; blank lines hold none.

        Raises UserError naming file and line where it is not JSON, has no such field, or is not UTF-8.
        """
        for number, line in enumerate(self.lines, self.first_line):
            if line.isspace():
                continue
            text = _field_text(f"{self.path}:{number}", line, field, errors)
            try:
                data = text.encode()
            except UnicodeEncodeError as error:
                if errors == "strict":
                    raise UserError(
                        f"{self.path}:{number}: the text holds half a surrogate pair (U+{ord(text[error.start]):04X}), "
                        "which is no character. Mend the line, or give --errors replace to put U+FFFD in its place."
                    ) from None
                text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
                data = text.encode()
            for _, part, digest in _cut(io.BytesIO(data)):
                yield Piece(part.decode(), len(part), digest)


Block = TextBlock | JsonBlock


def _undecodable(place: str, byte: int, offset: int) -> UserError:
    return UserError(
        f"{place} is not UTF-8: byte 0x{byte:02x} at offset {offset}. Convert it to UTF-8 (for instance with iconv), "
        "or give --errors replace to put U+FFFD in place of such bytes."
    )


def _field_text(place: str, line: bytes, field: str, errors: Errors) -> str:
    try:
        record = json.loads(line.decode("utf-8", errors))
    except UnicodeDecodeError as error:
        raise _undecodable(place, line[error.start], error.start) from None
    except ValueError as error:
        raise UserError(
            f"{place}: not a line of JSON: {error}. Mend or remove the line; a JSONL file holds one object a line."
        ) from None
    names = ", ".join(map(repr, record)) if isinstance(record, dict) else f"none: it is a {type(record).__name__}"
    if not isinstance(record, dict) or field not in record:
        raise UserError(f"{place}: there is no field {field!r}; the fields are {names}. Name the text's with --field.")
    if not isinstance(record[field], str):
        raise UserError(
            f"{place}: field {field!r} is a {type(record[field]).__name__}, not a text. Name the text's with --field."
        )
    return record[field]


def find_files(patterns: tuple[str, ...]) -> list[Path]:
    """The files that the patterns match (`**` goes into folders), sorted, each once.

    Raises UserError naming a pattern that matches no file.
    """
    found = set()
    for pattern in patterns:
        expanded = str(Path(pattern).expanduser())
        files = [expanded] if Path(expanded).is_file() else glob.glob(expanded, recursive=True)
        files = [file for file in files if Path(file).is_file()]
        if not files:
            hint = f" It is a folder: give '{pattern}/**/*.txt', say." if Path(expanded).is_dir() else ""
            raise UserError(f"no file matches the input {pattern!r} (from {Path.cwd()}).{hint}")
        found.update(files)
    return [Path(file) for file in sorted(found)]


def standard_library() -> list[Path]:
    """The source files of this Python's standard library, tests and installed packages left out, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = set(folders) - left_out
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    if not files:
        raise UserError(
            f"this Python has no source of its standard library in {root}; prepare a text of your own with "
            "`paxlike data prepare` and name its folder in data.store."
        )
    return sorted(files)


def read_blocks(path: Path) -> Iterator[Block]:
    """The blocks of a file, in order. Raises UserError where it cannot be read, or a compressed file is damaged."""
    plain = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    try:
        with path.open("rb") as disk, _decompressed(path, disk) as stream:
            read = _json_blocks if plain.suffix in JSON_SUFFIXES else _text_blocks
            yield from read(path, disk, stream)
    except (zlib.error, zstandard.ZstdError, EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged and cannot be decompressed: {error}. Fetch or write it again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def _decompressed(path: Path, disk: io.BufferedReader) -> io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=disk)
    return io.BufferedReader(_ZstdReader(disk), BLOCK_BYTES) if path.suffix == ".zst" else disk


class _ZstdReader(io.RawIOBase):
    """Decompressed .zst. Unlike the library's own reader it raises EOFError where the file was cut short."""

    def __init__(self, disk: io.BufferedReader):
        self._disk, self._frame, self._left, self._ready = disk, None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, target) -> int:
        while not self._ready:
            data = self._left or self._disk.read(1 << 16)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends inside a frame")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready = self._frame.decompress(data)
            self._left = b""
            if self._frame.eof:
                self._left, self._frame = self._frame.unused_data, None
        count = min(len(target), len(self._ready))
        target[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def _text_blocks(path: Path, disk: io.BufferedReader, stream: io.BufferedIOBase) -> Iterator[TextBlock]:
    before = 0
    for offset, data, digest in _cut(stream):
        yield TextBlock(path, offset, data, digest, disk.tell() - before)
        before = disk.tell()


def _json_blocks(path: Path, disk: io.BufferedReader, stream: io.BufferedIOBase) -> Iterator[JsonBlock]:
    line, before = 1, 0
    while lines := stream.readlines(BLOCK_BYTES):
        yield JsonBlock(path, line, lines, disk.tell() - before)
        line, before = line + len(lines), disk.tell()


def _cut(stream: io.BufferedIOBase) -> Iterator[tuple[int, bytes, int | None]]:
    """(offset, at most BLOCK_BYTES, 64-bit hash of everything: on the last block only). Nothing for an empty stream."""
    offset, buffer, content = 0, b"", hashlib.blake2b(digest_size=8)
    while data := stream.read(BLOCK_BYTES):
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
    """Where to cut a block off its front: before the last space that follows something else.

    No SentencePiece piece reaches over such a place, so the tokens are those of the uncut text. A text without spaces
    is cut between two characters.
    """
    end = len(block)
    while (end := block.rfind(b" ", 1, end)) > 0:
        if block[end - 1] != 0x20:
            return end
    end = len(block) - 1
    while end > len(block) - 4 and block[end] & 0xC0 == 0x80:
        end -= 1
    return end
