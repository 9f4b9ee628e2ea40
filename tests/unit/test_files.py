"""Files and directories are written completely or not at all, and nothing is overwritten."""

import errno
import os
import threading

import pytest

from paxlike.config import UserError
from paxlike.files import check_free, new_folder, write_file


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "a"
    for content in ("first \u00e9", b"\x00second"):
        write_file(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    (tmp_path / "b").touch()
    assert (
        path.stat().st_mode == (tmp_path / "b").stat().st_mode
    )  # The same permissions as any file.


@pytest.mark.parametrize("exception", [KeyboardInterrupt, OSError])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, exception):
    path = tmp_path / "a"
    write_file(path, "old")

    def fail(*_):
        raise exception

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(exception):
        write_file(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_concurrent_writers_of_one_file_do_not_mix(tmp_path, monkeypatch):
    """Both have written their content before either renames its file."""
    both, replace = threading.Barrier(2), os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (both.wait(60), replace(*names)))
    texts = {"a" * 3000, "b" * 5000}
    threads = [threading.Thread(target=write_file, args=(tmp_path / "x", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x").read_text() in texts and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_files_of_the_user_are_not_overwritten(tmp_path):
    mine, page = tmp_path / "mine.txt", tmp_path / "page.html"
    mine.write_text("dear diary")
    page.write_text("<meta made by this>")
    check_free(tmp_path / "new")
    check_free(page, "made by this")
    for path, mark, message in (
        (
            mine,
            None,
            "mine.txt already exists and is not overwritten. Remove it, or choose another name",
        ),
        (
            mine,
            "made by this",
            "mine.txt already exists, was not written by this command, and is not overwritten",
        ),
        (page, None, "page.html already exists"),
        (tmp_path, None, "is a directory. Specify a file in it"),
        (tmp_path, "made by this", "is a directory"),
        (
            tmp_path / "none" / "x.html",
            None,
            "there is no directory .*none to write x.html to. Create it",
        ),
    ):
        with pytest.raises(UserError, match=message):
            check_free(path, mark)
    assert mine.read_text() == "dear diary"


def test_a_mark_counts_near_the_beginning_only(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("x" * 5000 + "made by this")
    with pytest.raises(UserError, match="was not written by this command"):
        check_free(page, "made by this")


def test_a_directory_appears_when_it_is_complete(tmp_path):
    output = tmp_path / "deep" / "out"
    with new_folder(output) as folder:
        (folder / "a").write_text("x")
        assert not output.exists() and folder.parent == output.parent
    assert (output / "a").read_text() == "x"
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, UserError, ValueError])
def test_nothing_remains_after_an_exception(tmp_path, exception):
    with pytest.raises(exception), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        raise exception
    assert not list(tmp_path.iterdir())


def test_an_existing_directory_is_not_changed(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with (
        pytest.raises(UserError, match="out already exists and is not overwritten. Remove it"),
        new_folder(output),
    ):
        raise AssertionError
    assert not list(output.iterdir())


@pytest.mark.parametrize("content", [True, False])
def test_a_directory_created_meanwhile_is_not_changed(tmp_path, content):
    output = tmp_path / "out"
    with pytest.raises(UserError, match="already exists"), new_folder(output) as folder:
        (folder / "a").write_text("mine")
        output.mkdir()
        if content:
            (output / "a").write_text("theirs")
    assert [path.read_text() for path in output.iterdir()] == ["theirs"] * content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_a_user_error(tmp_path):
    with (
        pytest.raises(UserError, match="No space left on device .*GB are free"),
        new_folder(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
