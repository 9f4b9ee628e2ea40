"""The unfinished work of `data prepare`: a later call with the same inputs resumes it.

A hidden directory beside the output has the tokenizer, the tokens and documents written so far, and
a journal of how much of them is complete. It is removed when the store is written, and when the
work fails before the journal has an entry.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from paxlike.data.bad_lines import BadLineCount
from paxlike.data.progress import say
from paxlike.files import write_file


@dataclasses.dataclass
class Journal:
    """How much is done: input blocks, bytes of both files, and what the counts need."""

    blocks: int = 0
    disk_bytes: int = 0
    """Bytes of the input files that the blocks stand for."""
    tokens: int = 0
    documents: int = 0
    unfinished: tuple[int, int] = (0, 0)
    """Tokens and bytes of the document that the next block continues."""
    bad_lines: dict[str, BadLineCount] = dataclasses.field(default_factory=dict)
    loss_mask: int = 0
    """Bytes of the loss mask; 0 for texts, which have none."""


class Partial:
    """A directory of unfinished work."""

    def __init__(self, folder: Path, key: str):
        self.folder, self._key = folder, key
        self.journal = Journal()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            values = json.loads((folder / "journal.json").read_text())
            if values.pop("key") == key:
                bad = {kind: BadLineCount(**one) for kind, one in values.pop("bad_lines").items()}
                self.journal = Journal(**values, bad_lines=bad)

    def open(self, name: str) -> BinaryIO:
        """Opens `tokens`, `documents` or `loss_mask` after its complete part, and removes the
        rest.
        """
        size = getattr(self.journal, name)
        file = open(self.folder / name, "r+b" if size else "wb")
        file.truncate(size)
        file.seek(size)
        return file

    def record(self, journal: Journal, *files: BinaryIO) -> None:
        """Makes the work so far permanent."""
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        self.journal = journal
        values: dict[str, Any] = {"key": self._key, **dataclasses.asdict(journal)}
        write_file(self.folder / "journal.json", json.dumps(values) + "\n")


@contextlib.contextmanager
def partial_work(output: Path, key: str) -> Iterator[Partial]:
    """The unfinished work on `output`, empty unless its key is the same.

    If another process works on the same output, a directory of its own.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    shared = output.parent / f".{output.name}.partial"
    lock = _lock(shared)
    folder = shared
    if lock is None:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        work = Partial(folder, key)
        if work.journal.blocks:
            say(f"resuming after {work.journal.disk_bytes / 1e6:,.1f} MB of the input")
        else:
            _clear(folder)
        try:
            yield work
        except BaseException:
            if folder == shared and work.journal.blocks:
                say(f"note: the same command resumes from {folder}; remove it to start over")
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Creates and locks the directory. None if another process has it."""
    while True:
        folder.mkdir(exist_ok=True)
        path = folder / "lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # its process has just finished and removed the directory
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        os.close(lock)  # locked, but removed in between


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
