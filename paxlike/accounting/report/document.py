"""Self-contained HTML pages: one file, no scripts, no external resources.

`paxlike report` and `paxlike plan` write such pages.
"""

from html import escape
from pathlib import Path

from paxlike.accounting.report.style import CSS
from paxlike.files import check_free, write_file


def document(command: str, title: str, body: str) -> str:
    """Returns the page of `paxlike COMMAND`. Escapes the title, but not the body."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{_generator(command)}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>"
        f"<style>{CSS}</style></head><body><main>{body}</main></body></html>\n"
    )


def check_page(path: Path, command: str) -> None:
    """Checks that a page can be written to `path`.

    Raises UserError if `path` exists and is not a page of this command, or if its parent directory
    does not exist.
    """
    check_free(path, _generator(command))


def write_page(path: Path, command: str, html: str) -> None:
    """Writes the page. Replaces an older page of this command; raises UserError as `check_page`."""
    check_page(path, command)
    write_file(path, html)


def _generator(command: str) -> str:
    return f'<meta name="generator" content="paxlike {command}">'
