"""Documents of text, JSONL and CSV files, compressed or not, for any block size."""

import bz2
import csv
import gzip
import json
import os

import pytest
import zstandard

from paxlike.config import UserError
from paxlike.data import blocks
from paxlike.data.bad_lines import BadLine, ReadOptions
from paxlike.data.corpus import read_blocks

from .conftest import AWKWARD, random_texts, source_text

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
BOM = b"\xef\xbb\xbf"


def documents(path, **options):
    """(text, hash) of each document of a file."""
    found, text = [], ""
    for block in read_blocks(path):
        for piece in block.pieces(ReadOptions(**options)):
            if isinstance(piece, BadLine):
                continue
            text += piece.text
            if piece.hash is not None:
                found.append((text, piece.hash))
                text = ""
    assert not text
    return found


def texts(path, **options):
    return [text for text, _ in documents(path, **options)]


def bad_lines(path, **options):
    """(kind, line) of each skipped line."""
    options = ReadOptions(skip_bad_lines=True, **options)
    return [
        (piece.kind, int(piece.place.rpartition(":")[2]))
        for block in read_blocks(path)
        for piece in block.pieces(options)
        if isinstance(piece, BadLine)
    ]


def write_jsonl(path, values, field="text"):
    path.write_text("".join(json.dumps({"id": 1, field: value}) + "\n" for value in values))
    return path


def write_csv(path, values, field="text"):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", field, "more"])
        writer.writerows([number, value, 'a "b", c'] for number, value in enumerate(values))
    return path


@pytest.mark.parametrize("block", [16, 100, 1 << 18])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_text_file_is_one_document_for_any_block_size(tmp_path, monkeypatch, suffix, block):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block)
    for number, text in enumerate(
        [*AWKWARD, *random_texts(20), source_text(0), " " * 333, "é" * 333, "\0" * 333]
    ):
        path = tmp_path / f"{number}.txt{suffix}"
        path.write_bytes(COMPRESS[suffix](text.encode()))
        assert texts(path) == ([text] if text else [])
        assert all(len(block.data) <= blocks.BLOCK_BYTES for block in read_blocks(path))


@pytest.mark.parametrize("block", [16, 1 << 18])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_jsonl_documents(tmp_path, monkeypatch, suffix, block):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block)
    values = [*AWKWARD, *random_texts(20), source_text(0)]
    plain = write_jsonl(tmp_path / "a.jsonl", values, "body").read_bytes()
    path = tmp_path / f"b.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](b"\n  \n" + plain.rstrip(b"\n")))
    assert texts(path, field="body") == [value for value in values if value]


@pytest.mark.parametrize("block", [16, 1 << 18])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_csv_documents(tmp_path, monkeypatch, suffix, block):
    """Commas, quotes and line ends inside of a cell belong to the text."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block)
    values = [
        *AWKWARD,
        *random_texts(20),
        source_text(0),
        'two\n"quoted", lines\r\n',
        "x" * 200_000,
    ]
    plain = write_csv(tmp_path / "a.csv", values, "body").read_bytes()
    path = tmp_path / f"b.CSV{suffix.upper()}"
    path.write_bytes(COMPRESS[suffix](plain))
    assert texts(path, field="body") == [value for value in values if value]
    assert len(list(read_blocks(path))) > (10 if block == 16 else 0)


def test_formats_of_the_same_document_have_the_same_hash(tmp_path, monkeypatch):
    values = [source_text(0), source_text(1)]
    path = write_jsonl(tmp_path / "a.jsonl", values)
    (tmp_path / "b.txt").write_text(values[0], newline="")
    (tmp_path / "bom.txt").write_bytes(BOM + values[0].encode())
    hash0, hash1 = (digest for _, digest in documents(path))
    ((_, text_hash),) = documents(tmp_path / "b.txt")
    assert hash0 == text_hash != hash1
    assert documents(tmp_path / "bom.txt") == documents(tmp_path / "b.txt")
    assert documents(write_csv(tmp_path / "c.csv", values)) == documents(path)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    assert [digest for _, digest in documents(path)] == [hash0, hash1]


def test_blocks_are_cut_before_a_space_that_ends_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    (tmp_path / "a.txt").write_text(source_text(3), newline="")
    found = [block.data for block in read_blocks(tmp_path / "a.txt")]
    assert len(found) > 10
    assert all(
        left[-1:] != b" " and right[:1] == b" "
        for left, right in zip(found, found[1:], strict=False)
    )


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_disk_bytes_add_up_to_the_file(tmp_path, monkeypatch, suffix, name):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESS[suffix](source_text(0).replace('"', "").encode()))
    assert sum(block.disk_bytes for block in read_blocks(path)) == path.stat().st_size


@pytest.mark.parametrize("block", [16, 1 << 18])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_byte_order_mark_is_skipped_at_the_start_only(tmp_path, monkeypatch, suffix, block):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block)
    for name, plain, expected in (
        ("a.txt", b"one", ["one"]),
        ("b.txt", BOM + b"two words", [BOM.decode() + "two words"]),
        ("c.txt", b"", []),
        ("d.jsonl", b'{"text": "three"}\n{"text": "\xef\xbb\xbffour"}', ["three", "\ufefffour"]),
        ("e.jsonl", b"", []),
        ("f.csv", b"text,id\nfive,1\n", ["five"]),
        ("g.csv", b'"text",id\nsix,1\n', ["six"]),
        ("h.csv", b"", []),
    ):
        path = tmp_path / (name + suffix)
        path.write_bytes(COMPRESS[suffix](BOM + plain))
        assert texts(path) == expected, name


def test_bytes_after_a_byte_order_mark_are_counted_from_the_start_of_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(BOM + b"caf\xe9")
    with pytest.raises(UserError, match="byte 0xe9 at offset 6"):
        texts(path)


def test_bytes_that_are_not_utf8_are_reported_with_file_offset_and_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    path = tmp_path / "a.txt"
    path.write_bytes(b"word " * 40 + b"caf\xe9 x")
    for skip in (False, True):
        with pytest.raises(
            UserError, match=r"a\.txt is not UTF-8: byte 0xe9 at offset 203\..*--errors replace"
        ):
            texts(path, skip_bad_lines=skip)
    assert texts(path, errors="replace") == ["word " * 40 + "caf\ufffd x"]


DEEP = b'{"text": "x", "unused": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
BAD_JSON = [
    (b'{"text": "x"', "broken_json", r"broken json: Expecting"),
    (b"{'text': 'x'}", "broken_json", r"broken json: Expecting property name"),
    (DEEP, "nested_too_deeply", r"nested too deeply: .*"),
    (
        b'{"body": "x", "id": 2}',
        "missing_field",
        r"missing field: there is no field 'text'; the fields are 'body', 'id'\..*--field",
    ),
    (b"[1]", "missing_field", r"missing field: there is no field 'text': the line is an array"),
    (b"null", "missing_field", r"missing field: there is no field 'text': the line is null"),
    (b'"text"', "missing_field", r"missing field: there is no field 'text': the line is a string"),
    (b'{"text": null}', "null_text", r"null text: field 'text' is null\..*--field"),
    (b'{"text": 5}', "not_a_string", r"not a string: field 'text' is a number, not a string"),
    (b'{"text": true}', "not_a_string", r"not a string: field 'text' is a boolean"),
    (b'{"text": ["x"]}', "not_a_string", r"not a string: field 'text' is an array"),
    (b'{"text": {"a": 1}}', "not_a_string", r"not a string: field 'text' is an object"),
    (b'{"text": "\xff"}', "not_utf8", r"not utf8: byte 0xff at offset 10 .*--errors replace"),
    (b'{"text": "\\ud800"}', "lone_surrogate", r"lone surrogate: .*U\+D800.*--errors replace"),
]


@pytest.mark.parametrize(("line", "kind", "message"), BAD_JSON)
@pytest.mark.parametrize("block", [4, 1 << 18])
def test_a_bad_line_is_an_error_or_skipped(tmp_path, monkeypatch, line, kind, message, block):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b'\n{"text": "good"}\n')
    with pytest.raises(UserError, match=rf"a\.jsonl:3: {message}.*--skip-bad-lines"):
        texts(path)
    assert texts(path, skip_bad_lines=True) == ["fine", "good"]
    assert bad_lines(path) == [(kind, 3)]


def test_unused_values_of_any_size_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x", "n": ' + b"7" * 10_000 + b', "m": [' + b"[[]]," * 99 + b"1]}")
    assert texts(path) == ["x"]


def test_long_lists_of_fields_are_shortened(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"x" * 5000: 1} | {f"n{n}": 1 for n in range(5000)}))
    with pytest.raises(UserError, match="'n8' and 4991 more") as error:
        texts(path)
    assert len(str(error.value)) < 600


def test_replaced_text_in_jsonl_and_csv(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a\xffb"}\n{"text": "c\\ud800d"}\n')
    first, second = texts(path, errors="replace")
    assert first == "a\ufffdb"
    assert second[0] == "c" and second[-1] == "d" and set(second[1:-1]) == {"\ufffd"}
    assert bad_lines(path, errors="replace") == []
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,id\na\xffb,1\nc,\xfe\n")
    assert texts(path, errors="replace") == ["a\ufffdb", "c"]
    assert bad_lines(path, errors="replace") == []


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        (b"caf\xe9,1", "not_utf8", "not utf8: byte 0xe9"),
        (b"x,\xff", "not_utf8", "not utf8: byte 0xff"),
        (b"one, two,1", "column_count", "column count: the row has 3 columns, the header 2"),
        (b"one", "column_count", "column count: the row has 1 columns, the header 2"),
        (b'"one" two,1', "broken_csv", "broken csv: ',' expected after '\"'"),
    ],
)
@pytest.mark.parametrize("block", [4, 1 << 18])
def test_a_bad_csv_row_is_an_error_or_skipped(tmp_path, monkeypatch, row, kind, message, block):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block)
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,id\n"fine\n\nlines",1\n\n' + row + b"\ngood,2\n")
    with pytest.raises(UserError, match=rf"a\.csv:6: {message}.*--skip-bad-lines"):
        texts(path)
    assert texts(path, skip_bad_lines=True) == ["fine\n\nlines", "good"]
    assert bad_lines(path) == [(kind, 6)]


def test_a_quote_that_never_ends_is_reported_where_it_starts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,id\none,1\n"two,2\nthree,3\n')
    with pytest.raises(UserError, match=r"a\.csv:3: broken csv: unexpected end of data"):
        texts(path)
    assert texts(path, skip_bad_lines=True) == ["one"] and bad_lines(path) == [("broken_csv", 3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("just a line\nand another\n", "no column is named 'text'; .* 'just a line'.*--field"),
        ("id;text\n1;x\n", "no column is named 'text'; .* 'id;text'.* commas between"),
        ("text,text\nx,y\n", "more than one column is named 'text'"),
        ('"text" x\n', r"a\.csv:1: broken CSV header"),
    ],
)
def test_a_csv_needs_a_header_with_the_column(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_text(content)
    for skip in (False, True):
        with pytest.raises(UserError, match=message):
            texts(path, skip_bad_lines=skip)


def test_csv_with_old_line_ends(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\r1,one\r2,two\r")
    assert texts(path) == ["one", "two"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_a_damaged_compressed_file_is_a_user_error(tmp_path, suffix):
    whole = COMPRESS[suffix](os.urandom(300_000))
    for data in (whole[:-7], whole[: len(whole) // 2], b"garbage" * 10, whole + whole[:1000]):
        for name in ("a.txt", "a.jsonl", "a.csv"):
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(data)
            with pytest.raises(UserError, match=r"a\.\w+\.\w+ is damaged"):
                list(read_blocks(path))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_joined_compressed_files_are_read_to_the_end(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"one ") + COMPRESS[suffix](b"two"))
    assert texts(path) == ["one two"]


def zstd_frame(window_log: int, content: bytes) -> bytes:
    """A frame with one raw block, as `zstd --long=WINDOW_LOG` declares it for a stream (RFC
    8878).
    """
    block = (len(content) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd" + bytes([0, (window_log - 10) << 3]) + block + content


def test_zstd_with_the_largest_window_is_read(tmp_path):
    path = tmp_path / "a.txt.zst"
    for window_log in (20, 27, 31):
        path.write_bytes(zstd_frame(window_log, b"a long way back"))
        assert texts(path) == ["a long way back"]
    path.write_bytes(zstd_frame(32, b"x"))
    with pytest.raises(UserError, match="too much memory"):
        texts(path)


def test_a_file_that_cannot_be_read_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"gone\.txt cannot be read: No such file"):
        list(read_blocks(tmp_path / "gone.txt"))
