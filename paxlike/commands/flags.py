"""Shared by all commands: flags from dataclasses, and the positional arguments before them."""

import importlib.util
from typing import Any

from paxlike.config import UserError


def flags_of(kind: type, arguments: list[str], prog: str, default: Any = None) -> Any:
    """Parses a command's flags into the dataclass `kind`. tyro handles --help and mistakes (exit
    code 2).
    """
    import tyro

    return tyro.cli(
        kind, args=arguments, default=default, prog=prog, config=(tyro.conf.AvoidSubcommands,)
    )


def take(arguments: list[str], what: str, command: str) -> tuple[str, list[str]]:
    """(the first positional argument, the remaining arguments). "" if only help is requested."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if "-h" in arguments or "--help" in arguments:
        return "", arguments
    raise UserError(f"`paxlike {command}` requires {what} first: paxlike {command} {what} ...")


def platform():
    """Imports JAX and returns `parallel.runtime`. Called first by commands that need devices."""
    from paxlike.parallel.compilers import import_jax

    import_jax()
    import jax

    # Broadcasting between arrays of different rank is nearly always a mistake in a model.
    jax.config.update("jax_numpy_rank_promotion", "raise")
    from paxlike.parallel import runtime

    return runtime


def need(module: str, extra: str) -> None:
    """Raises UserError if an optional library is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"this command requires {module}, which is not installed: "
            f"pip install 'paxlike[{extra}]'."
        )
