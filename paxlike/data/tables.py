"""Parquet and Arrow files in blocks of rows. Only the column of the text is read, as a stream; for
conversations, the columns of the records.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paxlike.config import UserError
from paxlike.data import blocks
from paxlike.data.bad_lines import BadLine, BadLineError, ReadOptions, shown_names, skip_or_fail
from paxlike.data.blocks import Piece, document_pieces

Columns = tuple[tuple[str, ...], tuple[str, ...]]
"""Columns that a table must have, and those that are read if it has them."""
_ROWS = 1024
_RECORDS = 128
_BUFFER = 1 << 20
_FILE_MAGIC = b"ARROW1"
_STREAM_ENDS = (b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")
"""How a complete Arrow stream ends, today and before Arrow 0.15."""


@dataclass(frozen=True)
class TableBlock:
    """Some rows of the text column of a table."""

    path: Path
    first_row: int
    """Counted from 1."""
    texts: list[bytes | None]
    disk_bytes: int
    """Bytes of the file on disk that these rows stand for."""

    def pieces(self, options: ReadOptions) -> Iterator[Piece | BadLine]:
        """The documents of the rows. An empty text has none.

        Raises UserError with file and row for a bad row, unless `options` skips them.
        """
        for row, data in enumerate(self.texts, self.first_row):
            try:
                document = _document(data, options)
            except BadLineError as error:
                yield skip_or_fail(error, f"{self.path}:{row}", options)
            else:
                yield from document_pieces(document)


@dataclass(frozen=True)
class RecordBlock:
    """Some rows of a table of conversations."""

    path: Path
    first_row: int
    """Counted from 1."""
    records: list[dict]
    disk_bytes: int
    """Bytes of the file on disk that these rows stand for."""

    def pieces(self, options: ReadOptions) -> Iterator[Piece | BadLine]:
        """The conversations. Raises as `TableBlock.pieces`."""
        assert options.record
        for row, record in enumerate(self.records, self.first_row):
            try:
                yield options.record(record)
            except BadLineError as error:
                yield skip_or_fail(error, f"{self.path}:{row}", options)


def _document(data: bytes | None, options: ReadOptions) -> bytes:
    if data is None:
        raise BadLineError("null_text", f"column {options.field!r} is null")
    try:
        return data.decode("utf-8", options.errors).encode()
    except UnicodeDecodeError as error:
        raise BadLineError(
            "not_utf8", f"byte 0x{data[error.start]:02x} at offset {error.start} of the text"
        ) from None


def parquet_blocks(
    path: Path, disk: io.BufferedReader, field: str, columns: Columns | None = None
) -> Iterator[TableBlock] | Iterator[RecordBlock]:
    """The blocks of a Parquet file: those of the text in `field`, or the records of `columns`.

    Raises UserError if it has no such column or is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(disk, buffer_size=_BUFFER, pre_buffer=False)
        if columns:
            names = _names(path, file.schema_arrow, columns)
            records = file.iter_batches(_RECORDS, columns=names)
            yield from _record_blocks(path, disk, records, file.metadata.num_rows)
            return
        place = _place(path, file.schema_arrow, field)
        batches = file.iter_batches(_ROWS, columns=[".".join(place)])
        yield from _blocks(path, disk, batches, place, file.metadata.num_rows)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise damaged(path, error) from error
    except OSError as error:
        if error.errno is None:
            raise damaged(path, error) from error
        raise


def arrow_blocks(
    path: Path, disk: io.BufferedReader, field: str, columns: Columns | None = None
) -> Iterator[TableBlock] | Iterator[RecordBlock]:
    """The blocks of an Arrow file, or of a stream, as `datasets` saves them to disk.

    Raises as `parquet_blocks`.
    """
    import pyarrow

    is_file = disk.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    try:
        if not is_file:
            _check_end(path, disk)
        schema = _open(disk, is_file).schema
        place = _place(path, schema, field) if columns is None else ()
        names = _names(path, schema, columns) if columns else [place[0]]
        reader = _open(disk, is_file, [schema.names.index(name) for name in names])
        batches = (
            (reader.get_batch(number) for number in range(reader.num_record_batches))
            if is_file
            else iter(reader)
        )
        if columns:
            yield from _record_blocks(path, disk, batches, None)
        else:
            yield from _blocks(path, disk, batches, place, None)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise damaged(path, error) from error
    except OSError as error:
        if error.errno is None:
            raise damaged(path, error) from error
        raise


def _open(disk: io.BufferedReader, is_file: bool, columns: list[int] | None = None) -> Any:
    """A reader of these columns; None: of all."""
    import pyarrow

    disk.seek(0)
    source = pyarrow.PythonFile(disk, "r")
    options = pyarrow.ipc.IpcReadOptions(included_fields=columns) if columns else None
    opened = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
    return opened(source, options=options)


def _check_end(path: Path, disk: io.BufferedReader) -> None:
    size = disk.seek(0, io.SEEK_END)
    disk.seek(max(0, size - 8))
    if not disk.read().endswith(_STREAM_ENDS):
        raise damaged(path, "the stream has no end")


def _place(path: Path, schema: Any, field: str) -> tuple[str, ...]:
    """The path of the text column: a name, or names of nested structs joined by dots."""
    import pyarrow

    place: tuple[str, ...] = (field,) if field in schema.names else tuple(field.split("."))
    found: Any = schema
    for depth, name in enumerate(place):
        if depth and not pyarrow.types.is_struct(found.type):
            found = None
        else:
            names = schema.names if not depth else [inner.name for inner in found.type]
            found = (
                None
                if names.count(name) != 1
                else schema.field(name)
                if not depth
                else found.type.field(name)
            )
        if found is None:
            raise UserError(
                f"{path}: there is no column {field!r}; the columns are "
                f"{shown_names(_columns(schema))}. Name the column that holds the text with "
                "--field."
            )
    kind = found.type.value_type if pyarrow.types.is_dictionary(found.type) else found.type
    if str(kind) not in ("string", "large_string", "string_view", "binary", "large_binary"):
        raise UserError(
            f"{path}: the column {field!r} is of type {found.type}, not text. Name the column that "
            "holds the text with --field."
        )
    return place


def _names(path: Path, schema: Any, columns: Columns) -> list[str]:
    """The columns of records. A name with dots stands for its first column."""
    needed, optional = ([name.partition(".")[0] for name in group] for group in columns)
    for name in needed:
        if name not in schema.names:
            raise UserError(
                f"{path}: there is no column {name!r}; the columns are "
                f"{shown_names(schema.names)}. Choose another --format, or name the column that "
                "holds the turns with --field."
            )
    return [*needed, *(name for name in optional if name in schema.names)]


def _record_blocks(
    path: Path, disk: io.BufferedReader, batches: Iterator, rows: int | None
) -> Iterator[RecordBlock]:
    """Blocks of a batch each. rows: of the whole file, if known."""
    size, before, row = _size(disk), 0, 0
    for batch in batches:
        for begin in range(0, batch.num_rows, _RECORDS):
            records = batch.slice(begin, _RECORDS).to_pylist()
            row += len(records)
            done = size * row // rows if rows else min(disk.tell(), size)
            yield RecordBlock(path, row - len(records) + 1, records, max(0, done - before))
            before = max(before, done)


def _columns(schema: Any) -> Iterator[str]:
    """The names of all columns, those of structs with dots."""
    import pyarrow

    for field in schema:
        if pyarrow.types.is_struct(field.type):
            yield from (f"{field.name}.{inner}" for inner in _columns(field.type))
        else:
            yield field.name


def _blocks(
    path: Path, disk: io.BufferedReader, batches: Iterator, place: tuple[str, ...], rows: int | None
) -> Iterator[TableBlock]:
    """Blocks of about BLOCK_BYTES. rows: of the whole file, if known."""
    import pyarrow
    import pyarrow.compute

    size, before, row = _size(disk), 0, 0
    texts: list[bytes | None] = []
    held = 0

    def block() -> TableBlock:
        nonlocal before, row, texts, held
        done = size * (row + len(texts)) // rows if rows else min(disk.tell(), size)
        made = TableBlock(path, row + 1, texts, max(0, done - before))
        before, row, texts, held = max(before, done), row + len(texts), [], 0
        return made

    for batch in batches:
        column = batch.column(batch.schema.get_field_index(place[0]))
        for name in place[1:]:
            column = pyarrow.compute.struct_field(column, name)
        for text in column.cast(pyarrow.large_binary()).to_pylist():
            texts.append(text)
            held += len(text or b"") + 1
            if held >= blocks.BLOCK_BYTES:
                yield block()
    if texts:
        yield block()


def _size(disk: io.BufferedReader) -> int:
    """Bytes of an open file."""
    place = disk.tell()
    size = disk.seek(0, io.SEEK_END)
    disk.seek(place)
    return size


def damaged(path: Path, error: object) -> UserError:
    return UserError(f"{path} is damaged and cannot be read: {error}. Download or write it again.")
