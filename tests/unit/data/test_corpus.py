import gzip
import json
import os
import sysconfig
from pathlib import Path

import pytest
import zstandard

from paxlike.config import UserError
from paxlike.data import corpus
from paxlike.data.corpus import find_files, read_blocks, standard_library

from .conftest import AWKWARD, random_texts, source_text

PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def documents(path, field="text", errors="strict"):
    """(text, hash) of each document of a file."""
    found, text = [], ""
    for block in read_blocks(path):
        for piece in block.pieces(field, errors):
            text += piece.text
            if piece.hash is not None:
                found.append((text, piece.hash))
                text = ""
    assert not text
    return found


def texts(path, **settings):
    return [text for text, _ in documents(path, **settings)]


def write_jsonl(path, values, field="text"):
    path.write_text("".join(json.dumps({"id": 1, field: value}) + "\n" for value in values))
    return path


@pytest.mark.parametrize("block", [16, 100, 1 << 18])
@pytest.mark.parametrize("suffix", PACKERS)
def test_a_text_file_is_one_document_whatever_the_blocks(tmp_path, monkeypatch, suffix, block):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", block)
    for number, text in enumerate([*AWKWARD, *random_texts(20), source_text(0), " " * 333, "é" * 333, "\0" * 333]):
        path = tmp_path / f"{number}.txt{suffix}"
        path.write_bytes(PACKERS[suffix](text.encode()))
        assert texts(path) == ([text] if text else [])
        assert all(len(block.data) <= corpus.BLOCK_BYTES for block in read_blocks(path))


@pytest.mark.parametrize("block", [16, 1 << 18])
@pytest.mark.parametrize("suffix", PACKERS)
def test_jsonl_documents(tmp_path, monkeypatch, suffix, block):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", block)
    values = [*AWKWARD, *random_texts(20), source_text(0)]
    plain = write_jsonl(tmp_path / "a.jsonl", values, "body").read_bytes()
    path = tmp_path / f"b.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](b"\n  \n" + plain.rstrip(b"\n")))
    assert texts(path, field="body") == [value for value in values if value]


def test_hash_is_of_the_content_alone(tmp_path, monkeypatch):
    values = [source_text(0), source_text(1)]
    path = write_jsonl(tmp_path / "a.jsonl", values)
    (tmp_path / "b.txt").write_text(values[0], newline="")
    (hash0, hash1), (text_hash,) = [digest for _, digest in documents(path)], [documents(tmp_path / "b.txt")[0][1]]
    assert hash0 == text_hash != hash1
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 64)
    assert [digest for _, digest in documents(path)] == [hash0, hash1]


def test_blocks_are_cut_before_a_space_that_ends_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 64)
    (tmp_path / "a.txt").write_text(source_text(3), newline="")
    blocks = [block.data for block in read_blocks(tmp_path / "a.txt")]
    assert len(blocks) > 10
    assert all(left[-1:] != b" " and right[:1] == b" " for left, right in zip(blocks, blocks[1:], strict=False))


@pytest.mark.parametrize("suffix", PACKERS)
def test_disk_bytes_add_up_to_the_file(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 64)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACKERS[suffix](source_text(0).encode()))
    assert sum(block.disk_bytes for block in read_blocks(path)) == path.stat().st_size


def test_undecodable_bytes_name_file_offset_and_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 64)
    path = tmp_path / "a.txt"
    path.write_bytes(b"word " * 40 + b"caf\xe9 x")
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8: byte 0xe9 at offset 203\..*--errors replace"):
        texts(path)
    assert texts(path, errors="replace") == ["word " * 40 + "caf\ufffd x"]


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"text": "x"', r"a\.jsonl:3: not a line of JSON"),
        (b'{"body": "x", "id": 2}', r"a\.jsonl:3: there is no field 'text'; the fields are 'body', 'id'.*--field"),
        (b'{"text": 5}', r"a\.jsonl:3: field 'text' is a int"),
        (b"[1]", r"a\.jsonl:3: there is no field 'text'; the fields are none: it is a list"),
        (b'{"text": "\xff"}', r"a\.jsonl:3 is not UTF-8: byte 0xff at offset 10"),
        (b'{"text": "\\ud800"}', r"a\.jsonl:3: .*U\+D800.*--errors replace"),
    ],
)
@pytest.mark.parametrize("block", [4, 1 << 18])
def test_a_bad_line_is_named(tmp_path, monkeypatch, line, message, block):
    monkeypatch.setattr(corpus, "BLOCK_BYTES", block)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=message):
        texts(path)


def test_replaced_text_in_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a\xffb"}\n{"text": "c\\ud800d"}\n')
    first, second = texts(path, errors="replace")
    assert first == "a\ufffdb"
    assert second[0] == "c" and second[-1] == "d" and set(second[1:-1]) == {"\ufffd"}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_compressed_file_is_a_user_error(tmp_path, suffix):
    whole = PACKERS[suffix](os.urandom(300_000))
    for data in (whole[:-7], whole[: len(whole) // 2], b"garbage" * 10, whole + whole[:1000]):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.txt\.\w+ is damaged"):
            list(read_blocks(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_joined_compressed_files_are_read_to_the_end(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACKERS[suffix](b"one ") + PACKERS[suffix](b"two"))
    assert texts(path) == ["one two"]


def test_find_files_sorts_and_names_each_once(tmp_path):
    for name in ("b.txt", "a.txt", "in/c.txt", "x[1].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = find_files((f"{tmp_path}/**/*.txt", f"{tmp_path}/a.txt", f"{tmp_path}/x[1].txt"))
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.txt", "b.txt", "in/c.txt", "x[1].txt"]


def test_a_pattern_that_matches_nothing_is_a_user_error(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"no file matches the input '.*\.md'"):
        find_files((f"{tmp_path}/*.txt", f"{tmp_path}/*.md"))
    with pytest.raises(UserError, match="It is a folder"):
        find_files((str(tmp_path),))


def test_a_file_that_cannot_be_read_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"gone\.txt cannot be read: No such file"):
        list(read_blocks(tmp_path / "gone.txt"))


def test_standard_library_has_sources_without_tests():
    root = Path(sysconfig.get_path("stdlib"))
    names = {str(path.relative_to(root)) for path in standard_library()}
    assert {"argparse.py", "asyncio/events.py", "json/decoder.py"} <= names
    parts = {part for name in names for part in Path(name).parts}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    assert standard_library() == sorted(standard_library())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sysconfig, "get_path", lambda _: "/nonexistent")
        with pytest.raises(UserError, match="no source of its standard library in /nonexistent.*data.store"):
            standard_library()
