"""Reads files in blocks, so that a large file is never held in memory.

A UTF-8 byte-order mark at the start of a file is skipped.
"""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from paxlike.config import UserError
from paxlike.data import blocks
from paxlike.data.blocks import CsvBlock, CsvRow, JsonBlock, TextBlock, cut
from paxlike.data.decompression import DAMAGED, decompressed
from paxlike.data.input_files import SIGNATURE_BYTES, check_signature, file_format
from paxlike.data.tables import (
    Columns,
    RecordBlock,
    TableBlock,
    arrow_blocks,
    damaged,
    parquet_blocks,
)

_BOM = b"\xef\xbb\xbf"
_BUFFER = 1 << 20
_MAX_CELL = 1 << 30
Block = TextBlock | JsonBlock | CsvBlock | TableBlock | RecordBlock


def read_blocks(path: Path, field: str = "text", columns: Columns | None = None) -> Iterator[Block]:
    """The blocks of a file, in order. field: the column that is read of a Parquet or Arrow file, if
    not `columns`, of which whole records are read.

    Raises UserError if the file cannot be read, is of an unsupported format, has no such column, or
    is damaged.
    """
    content, compression = file_format(path)
    readers: dict[str, Callable[..., Iterator[Block]]] = {
        "text": _text_blocks,
        "jsonl": _json_blocks,
        "csv": _csv_blocks,
    }
    tables: dict[str, Callable[..., Iterator[Block]]] = {
        "parquet": parquet_blocks,
        "arrow": arrow_blocks,
    }
    try:
        with path.open("rb") as raw:
            # A file in a bucket has fewer methods.
            disk = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, _BUFFER)
            if content in tables:
                yield from tables[content](path, disk, field, columns)
                return
            with decompressed(disk, compression) as stream:
                yield from readers[content](path, disk, stream)
    except DAMAGED as error:
        raise damaged(path, error) from error
    except OSError as error:
        if error.errno is None and compression:
            raise damaged(path, error) from error
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def _text_blocks(
    path: Path, disk: io.BufferedReader, stream: io.BufferedIOBase
) -> Iterator[TextBlock]:
    head = stream.read(SIGNATURE_BYTES)
    check_signature(path, head)
    start = len(_BOM) if head.startswith(_BOM) else 0
    before = 0
    for offset, data, digest in cut(stream, head[start:]):
        yield TextBlock(path, start + offset, offset == 0, data, digest, disk.tell() - before)
        before = disk.tell()


def _json_blocks(
    path: Path, disk: io.BufferedReader, stream: io.BufferedIOBase
) -> Iterator[JsonBlock]:
    line, before = 1, 0
    while lines := stream.readlines(blocks.BLOCK_BYTES):
        if line == 1:
            lines[0] = lines[0].removeprefix(_BOM) or b"\n"
        yield JsonBlock(path, line, lines, disk.tell() - before)
        line, before = line + len(lines), disk.tell()


def _csv_blocks(
    path: Path, disk: io.BufferedReader, stream: io.BufferedIOBase
) -> Iterator[CsvBlock]:
    csv.field_size_limit(_MAX_CELL)
    text = io.TextIOWrapper(
        cast(io.BufferedReader, stream), "utf-8-sig", "surrogateescape", newline=""
    )
    rows = _csv_rows(csv.reader(text, strict=True))
    first = next(rows, None)
    if first is None:
        return
    if first.error:
        raise UserError(f"{path}:{first.line}: broken CSV header: {first.error}.")
    before = held = 0
    block: list[CsvRow] = []
    for row in rows:
        block.append(row)
        held += sum(map(len, row.cells)) + 1
        if held >= blocks.BLOCK_BYTES:
            yield CsvBlock(path, first.cells, block, disk.tell() - before)
            before, held, block = disk.tell(), 0, []
    yield CsvBlock(path, first.cells, block, disk.tell() - before)


def _csv_rows(reader) -> Iterator[CsvRow]:
    """The rows of a `csv.reader`, without the blank lines. A row that is broken ends with its
    line.
    """
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield CsvRow(line, [], str(error))
        else:
            if cells:
                yield CsvRow(line, cells, "")
