"""Atomic writes that never overwrite a user's files.

Files and directories are written under a temporary name and then renamed, so they are complete or
absent.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from paxlike.config import UserError


def check_free(path: Path, mark: str | None = None) -> None:
    """Raises UserError if `path` already exists, or its directory is missing.

    mark: text near the beginning of files by the same command, which may be overwritten.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory. Specify a file in it.")
    if path.exists() and not (mark and mark in _beginning(path)):
        origin = "" if mark is None else ", was not written by this command,"
        raise UserError(
            f"{path} already exists{origin} and is not overwritten. Remove it, or choose another "
            "name."
        )
    if not path.parent.is_dir():
        raise UserError(
            f"there is no directory {path.parent} to write {path.name} to. Create it, or choose "
            "another name."
        )


def _beginning(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(2000)


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file atomically, replacing an existing one."""
    temporary = _temporary_name(path, "tmp")
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
    """Raises UserError if a directory to be created, or a file of its name, already exists."""
    if output.exists():
        raise UserError(
            f"{output} already exists and is not overwritten. Remove it, or choose another "
            "directory."
        )


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yields a temporary directory that is renamed to `output` at the end, or removed on an
    exception.

    Raises UserError if `output` already exists or cannot be created, or the disk is full.
    """
    check_new(output)
    partial = _temporary_name(output, "partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _fsync(path)
        check_new(output)  # A rename would replace an empty directory.
        partial.rename(output)
        _fsync(output.parent)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            check_new(output)
        free = shutil.disk_usage(next(p for p in output.absolute().parents if p.exists())).free
        raise UserError(
            f"{output} cannot be written: {error.strerror or error} "
            f"({free / 1e9:.1f} GB are free). The partial output was removed. Free some space, or "
            "choose another directory."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _temporary_name(path: Path, suffix: str) -> Path:
    """Returns a unique name in the same directory, so that two writers never share a file."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{suffix}")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
