"""What is wrong, and how it is said: the errors of the house, and the checks of a section's fields."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Literal, get_args, get_origin


class UserError(Exception):
    """Something the user can mend: shown as one plain message, without a traceback, with exit code 2."""


class SaveError(UserError):
    """A save failed while other writes of it are under way. Whoever reports it ends the process without waiting for those."""


class JobError(Exception):
    """Another process of the job failed, is lost or hangs; the same command goes on from the newest checkpoint. Exit code 3."""


class ConfigError(UserError, ValueError):
    """A config that cannot work. The message names the field, the values and the remedy."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def typed(config: object, section: str) -> None:
    """Every field is of the type it is declared with; a word is one of its choices."""
    for field in dataclasses.fields(config):
        value, kind, name = getattr(config, field.name), field.type, f"{section}.{field.name}"
        if get_origin(kind) is Literal:
            words = get_args(kind)
            require(value in words, f"{name} is {value!r}; choose among {', '.join(words)}.{near(value, words)}")
        elif kind in (int, float, str, bool) or dataclasses.is_dataclass(kind):
            fits = isinstance(value, (int, float) if kind is float else kind)
            require(
                fits and (kind is bool or not isinstance(value, bool)),
                f"{name} is {value!r}; it must be of type {kind.__name__}.",
            )


def near(name: object, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(str(name), list(names), n=1)
    return f" Perhaps you meant {found[0]}." if found else ""


def positive(config: object, section: str, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        require(value > 0, f"{section}.{field} is {value}; it must be greater than 0.")


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
