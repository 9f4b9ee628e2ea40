"""Shared by all commands: flags from dataclasses, and the positional arguments before them."""

import dataclasses
import importlib.util
from typing import Annotated, Any

from paxlike.config import Config, InitConfig, UserError


def flags_of(kind: type, arguments: list[str], prog: str, default: Any = None) -> Any:
    """Parses a command's flags into the dataclass `kind`. tyro handles --help and mistakes (exit
    code 2).
    """
    import tyro

    # No field in Python can have the name of the flag, --init.from.
    InitConfig.__annotations__["source"] = Annotated[str, tyro.conf.arg(name="from")]
    return tyro.cli(
        kind, args=arguments, default=default, prog=prog, config=(tyro.conf.AvoidSubcommands,)
    )


def given_fields(arguments: list[str], section: str) -> frozenset[str]:
    """The fields of a config section that flags set, which tyro does not tell."""
    prefix = f"--{section}."
    names = (word.partition("=")[0] for word in arguments if word.startswith(prefix))
    fields = (name.removeprefix(prefix).partition(".")[0] for name in names)
    return frozenset(field.removeprefix("no-").replace("-", "_") for field in fields)


def take(arguments: list[str], what: str, command: str) -> tuple[str, list[str]]:
    """(the first positional argument, the remaining arguments). "" if only help is requested."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if "-h" in arguments or "--help" in arguments:
        return "", arguments
    raise UserError(f"`paxlike {command}` requires {what} first: paxlike {command} {what} ...")


def take_text(arguments: list[str], what: str, command: str, flags: type) -> tuple[str, list[str]]:
    """As `take`, for a text that may be empty or begin with a dash, or that follows `--`.

    A word that is a flag of the dataclass `flags` is no text. Raises UserError if there is no text
    or it is not UTF-8.
    """
    names = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(flags)}
    first = arguments[0] if arguments else "-h"
    if "--" in arguments:
        place = arguments.index("--")
        texts, rest = arguments[place + 1 :], arguments[:place]
        if len(texts) != 1:
            raise UserError(f"give one {what} after --; there are {len(texts)}.")
    elif first in ("-h", "--help") or first.partition("=")[0].partition(".")[0] in names:
        return take(arguments, what, command)
    else:
        texts, rest = arguments[:1], arguments[1:]
    try:
        texts[0].encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} is not valid UTF-8 at character {error.start}; check the terminal's encoding."
        ) from None
    return texts[0], rest


def platform():
    """Imports JAX and returns `parallel.runtime`. Called first by commands that need devices."""
    from paxlike.parallel.compilers import import_jax

    import_jax()
    import jax

    # Broadcasting between arrays of different rank is nearly always a mistake in a model.
    jax.config.update("jax_numpy_rank_promotion", "raise")
    from paxlike.parallel import runtime

    return runtime


def check_own_model(config: Config, command: str) -> None:
    """Raises UserError if the model is to be read from `init.source`, which only `train` does."""
    if config.init.config:
        raise UserError(
            f"`paxlike {command}` uses the model of CONFIG and does not read init.source "
            f"{config.init.source}; leave out --init.config, and set the model's fields."
        )


def need(module: str, extra: str) -> None:
    """Raises UserError if an optional library is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"this command requires {module}, which is not installed: "
            f"pip install 'paxlike[{extra}]'."
        )
