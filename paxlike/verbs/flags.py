"""What the verbs share: flags from dataclasses, and the words that come before them."""

import importlib.util

from paxlike.config import UserError


def flags_of(kind: type, arguments: list[str], prog: str, default: object = None):
    """The flags of a verb as an instance of the dataclass `kind`; tyro answers --help and mistakes (exit code 2)."""
    import tyro

    return tyro.cli(kind, args=arguments, default=default, prog=prog, config=(tyro.conf.AvoidSubcommands,))


def take(arguments: list[str], what: str, verb: str) -> tuple[str | None, list[str]]:
    """The positional word that a verb begins with, and the rest. None where only help is asked for."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if "-h" in arguments or "--help" in arguments:
        return None, arguments
    raise UserError(f"`paxlike {verb}` needs {what} first: paxlike {verb} {what} …")


def platform():
    """`parallel.runtime`, and with it JAX: what a verb that needs devices begins with."""
    from paxlike.parallel.compilers import import_jax

    import_jax()
    from paxlike.parallel import runtime

    return runtime


def need(module: str, extra: str) -> None:
    """Raises UserError where an optional library is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"this needs {module}, which is not installed: pip install 'paxlike[{extra}]'.")
