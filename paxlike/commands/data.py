"""Commands that make and verify token stores."""

import dataclasses
import sys
from typing import Literal

from paxlike.commands.flags import flags_of, take
from paxlike.config import UserError

_VERIFY_HELP = """\
usage: paxlike data verify STORE

Checks every byte of a token store against its manifest.
"""


def prepare_data(arguments: list[str]) -> None:
    from paxlike.data.prepare import PrepareConfig, prepare

    prepare(flags_of(PrepareConfig, arguments, "paxlike data prepare"))


def import_data(arguments: list[str]) -> None:
    from paxlike.data.import_tokens import ImportConfig, import_tokens

    import_tokens(flags_of(ImportConfig, arguments, "paxlike data import"))


def materialize_data(arguments: list[str]) -> None:
    from paxlike.data.materialize import MaterializeConfig, materialize

    materialize(flags_of(MaterializeConfig, arguments, "paxlike data materialize"))


def verify_data(arguments: list[str]) -> None:
    path, rest = take(arguments, "STORE", "data verify")
    if not path or rest:
        print(_VERIFY_HELP, end="")
        sys.exit(2 if path else 0)
    from paxlike.data.store import open_store

    store = open_store(path)
    store.verify()
    print(f"{path}: verified, fingerprint {store.fingerprint}")


@dataclasses.dataclass(frozen=True)
class ShowFlags:
    """Print documents of a token store, with the predicted tokens highlighted."""

    samples: int = 3
    """Number of documents."""
    start: int = 0
    """Number of the first one, from 0."""
    split: Literal["train", "validation"] = "train"


def show_data(arguments: list[str]) -> None:
    path, rest = take(arguments, "STORE", "data show")
    flags = flags_of(ShowFlags, rest, "paxlike data show STORE")
    if flags.samples < 1:
        raise UserError(f"--samples is {flags.samples}; it must be 1 or more.")
    from rich.console import Console

    from paxlike.data.show import show
    from paxlike.data.store import open_store

    show(open_store(path), flags.split, flags.start, flags.samples, Console())
