"""Files and folders that are there whole or not at all, and that take nobody's place: written under a temporary name, then renamed."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from paxlike.config import UserError


def check_free(path: Path, mark: str | None = None) -> None:
    """Raises UserError where a file that the user names cannot be written: its place is taken, or there is no folder for it.

    mark: a text near the beginning of what may be written over, because the same command wrote it.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: it is left alone. Name a file in it.")
    if path.exists() and not (mark and mark in _beginning(path)):
        what = "exists already" if mark is None else "exists, and this command did not write it"
        raise UserError(f"{path} {what}: it is left alone. Remove it, or give another name.")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} to. Make it, or give another name.")


def _beginning(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(2000)


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file, in the place of the one of that name if there is one."""
    temporary = _beside(path, "tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_new(output: Path) -> None:
    """Raises UserError where a folder that is to be made is there already, or a file of its name is."""
    if output.exists():
        raise UserError(f"{output} exists already: it is left alone. Remove it, or name another folder.")


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `output` that is renamed to it at the end, or removed on any exception.

    Raises UserError where `output` exists already (nothing is overwritten), cannot be made, or the disk is full.
    """
    check_new(output)
    partial = _beside(output, "partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _fsync(path)
        check_new(output)  # A rename would replace an empty folder.
        partial.rename(output)
        _fsync(output.parent)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            check_new(output)
        free = shutil.disk_usage(next(p for p in output.absolute().parents if p.exists())).free
        raise UserError(
            f"{output} cannot be written: {error.strerror or error} ({free / 1e9:.1f} GB are free); nothing of it was kept. "
            "Free some space, or name another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _beside(path: Path, suffix: str) -> Path:
    """A name of its own for every writer, so that two of them do not write into one file."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{suffix}")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
