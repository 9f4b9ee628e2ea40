"""A folder that is there whole or not at all, and what a conversion tells."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from paxlike.config import UserError


class Converted(NamedTuple):
    """What was written, for the user."""

    folder: Path
    parameters: int
    checked: str
    """The end of a sentence: `logits differ by at most …`."""
    notes: list[str]


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` to write into, renamed to `out` at the end; removed where anything is raised.

    Raises UserError where `out` exists already.
    """
    out = out.absolute()
    if out.exists():
        raise UserError(f"{out} exists already; give a folder that does not, nothing is written over.")
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
