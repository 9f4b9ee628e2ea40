"""A page of HTML in one file that needs nothing else: no script, no font, no address. `report` and `plan` write such pages."""

from html import escape
from pathlib import Path

from paxlike.accounting.report.style import CSS
from paxlike.files import check_free, write_file


def document(verb: str, title: str, body: str) -> str:
    """The page that `paxlike VERB` makes. The title is escaped here, what is in the body before."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{_generator(verb)}'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{CSS}</style></head><body><main>{body}</main></body></html>\n"
    )


def check_page(path: Path, verb: str) -> None:
    """Raises UserError where `path` is taken by something else than a page of that verb, or lies in no folder."""
    check_free(path, _generator(verb))


def write_page(path: Path, verb: str, html: str) -> None:
    """Writes the page, in the place of an older one of that verb. Raises UserError as `check_page`."""
    check_page(path, verb)
    write_file(path, html)


def _generator(verb: str) -> str:
    return f'<meta name="generator" content="paxlike {verb}">'
