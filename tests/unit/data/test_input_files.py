"""Which files are found, and which formats are refused."""

import os
import sysconfig
from pathlib import Path

import pytest

from paxlike.config import UserError
from paxlike.data.bad_lines import ReadOptions
from paxlike.data.corpus import read_blocks
from paxlike.data.input_files import file_format, find_files, standard_library


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("x")


def names(folder, found):
    return [str(path.relative_to(folder)) for path in found]


def test_files_are_sorted_and_listed_once(tmp_path):
    write(tmp_path, "b.txt", "a.txt", "in/c.txt")
    found = find_files((f"{tmp_path}/**/*.txt", f"{tmp_path}/a.txt"))
    assert names(tmp_path, found) == ["a.txt", "b.txt", "in/c.txt"]


def test_one_file_under_two_names_is_listed_once(tmp_path, monkeypatch):
    write(tmp_path, "b.txt", "in/c.txt")
    (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    found = find_files(("*.txt", f"{tmp_path}/b.txt", "in/c.txt", "./in/../in/c.txt", "link/c.txt"))
    assert [os.path.realpath(path) for path in found] == [
        os.path.realpath(tmp_path / name) for name in ("b.txt", "in/c.txt")
    ]
    assert str(found[0]) == f"{tmp_path}/b.txt", "the first name in sorted order"
    assert find_files((f"{tmp_path}/b.txt", "*.txt")) == find_files(("*.txt", f"{tmp_path}/b.txt"))


def test_existing_names_are_literal(tmp_path):
    write(tmp_path, "x[1].txt", "x1.txt", "what?.txt", "y[2]/a.txt", "y2/b.txt", "y[2]/*/c.txt")
    for pattern, expected in (
        ("x[1].txt", ["x[1].txt"]),
        ("what?.txt", ["what?.txt"]),
        ("y[2]/*.txt", ["y[2]/a.txt"]),
        ("y[2]/*/c.txt", ["y[2]/*/c.txt"]),
        ("x[12].txt", ["x1.txt"]),
        ("y[23]/*.txt", ["y2/b.txt"]),
    ):
        assert names(tmp_path, find_files((f"{tmp_path}/{pattern}",))) == expected


def test_a_pattern_without_a_match_is_a_user_error(tmp_path):
    write(tmp_path, "a.txt")
    for pattern in ("*.md", "x" * 5000, "[", "~nobody-of-this-name/x"):
        with pytest.raises(UserError, match=r"no file matches the input"):
            find_files((f"{tmp_path}/*.txt", f"{tmp_path}/{pattern}"))
    with pytest.raises(UserError, match="no file matches"):
        find_files(("~nobody-of-this-name/x",))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", ("text", "")),
        ("Makefile", ("text", "")),
        ("a.JSONL", ("jsonl", "")),
        ("a.ndjson.GZ", ("jsonl", ".gz")),
        ("a.Json.Zst", ("jsonl", ".zst")),
        ("a.csv.bz2", ("csv", ".bz2")),
        ("a.CSV", ("csv", "")),
        ("v1.2.gz", ("text", ".gz")),
        ("parquet", ("text", "")),
    ],
)
def test_the_format_follows_from_the_suffixes(name, expected):
    assert file_format(Path(name)) == expected


@pytest.mark.parametrize(
    ("name", "kind", "remedy"),
    [
        ("a.parquet.gz", "a compressed .parquet file", "Decompress it"),
        ("a.TSV", "a tab-separated table", "Convert it to JSONL"),
        ("a.tsv.gz", "a tab-separated table", "Convert it to JSONL"),
        ("a.tar.gz", "an archive", "Unpack it"),
        ("a.zip", "an archive", "Unpack it"),
        ("a.jsonl.lz4", "compressed in an unsupported way", "Decompress it"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, name, kind, remedy):
    write(tmp_path, name)
    for read in (lambda: find_files((f"{tmp_path}/*",)), lambda: [*read_blocks(tmp_path / name)]):
        with pytest.raises(UserError, match=rf"{name} is {kind} .*{remedy}.*--input.*\.jsonl"):
            read()


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip. Give its name the suffix .gz"),
        (b"PK\x03\x04", "a zip archive"),
        (b"%PDF-1.7", "a PDF file"),
        ("text".encode("utf-16"), "UTF-16 text"),
    ],
)
def test_binary_files_with_a_text_name_are_refused(tmp_path, head, kind):
    """Otherwise --errors replace makes a document of U+FFFD."""
    path = tmp_path / "a.txt"
    path.write_bytes(head + b"rest" * 10)
    with pytest.raises(UserError, match=rf"a\.txt is {kind.split('.')[0]}"):
        for block in read_blocks(path):
            list(block.pieces(ReadOptions(errors="replace")))


def test_standard_library_has_sources_without_tests():
    root = Path(sysconfig.get_path("stdlib"))
    found = {str(path.relative_to(root)) for path in standard_library()}
    assert {"argparse.py", "asyncio/events.py", "json/decoder.py"} <= found
    parts = {part for name in found for part in Path(name).parts}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    assert standard_library() == sorted(standard_library())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sysconfig, "get_path", lambda _: "/nonexistent")
        with pytest.raises(
            UserError, match="no source code of its standard library in /nonexistent.*data.store"
        ):
            standard_library()
