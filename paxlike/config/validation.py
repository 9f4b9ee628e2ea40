"""Exceptions with user-facing messages, and checks shared by the config sections."""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, get_args, get_origin

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Divisors are found by trial division up to this number: all of them below 2**32.
_TRIAL_DIVISION_LIMIT = 2**16


class UserError(Exception):
    """An error that the user can fix. Shown as one message without a traceback; exit code 2."""


class SaveError(UserError):
    """A save failed while its other writes are in progress; the process exits without them."""


class JobError(Exception):
    """Another process of the job failed, disappeared or hangs. Rerun to resume; exit code 3."""


class ConfigError(UserError, ValueError):
    """An invalid config. The message names the field, its value and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with `message` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def typed(config: "DataclassInstance", section: str) -> None:
    """Checks every field of a section against its declared type.

    A Literal must be one of its values, and a float must be finite. Raises ConfigError.
    """
    for field in dataclasses.fields(config):
        value, kind, name = getattr(config, field.name), field.type, f"{section}.{field.name}"
        if get_origin(kind) is Literal:
            words = get_args(kind)
            require(
                value in words,
                f"{name} is {value!r}; choose among {', '.join(words)}.{near(value, words)}",
            )
        elif isinstance(kind, type) and (
            kind in (int, float, str, bool) or dataclasses.is_dataclass(kind)
        ):
            fits = isinstance(value, (int, float) if kind is float else kind)
            require(
                fits and (kind is bool or not isinstance(value, bool)),
                f"{name} is {value!r}; it must be of type {kind.__name__}.",
            )
            if kind is float:
                require(is_finite(value), f"{name} is {value!r}; it must be a finite number.")


def is_finite(value: float) -> bool:
    """Whether a number has a finite float64 value; an int may be too large for one."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def near(name: object, names: Iterable[str]) -> str:
    """A suggestion to append to an error message about `name`; empty if no name is close."""
    found = difflib.get_close_matches(str(name), list(names), n=1)
    return f" Did you mean {found[0]}?" if found else ""


def positive(config: object, section: str, *fields: str) -> None:
    """Raises ConfigError unless each of the fields is greater than 0."""
    for field in fields:
        value = getattr(config, field)
        require(value > 0, f"{section}.{field} is {value}; it must be greater than 0.")


def divisors(n: int) -> list[int]:
    """Divisors of n in ascending order, found in a bounded number of trial divisions.

    All of them for n below 2**32. For a larger n, those of at most 2**16 and the quotients of n
    by them.
    """
    small = [d for d in range(1, min(math.isqrt(n), _TRIAL_DIVISION_LIMIT) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def suggest_divisors(n: int, value: int, most: int = 12) -> str:
    """Divisors of n for an error message: at most `most`, those nearest to the rejected value."""
    found = divisors(n)
    shown = sorted(sorted(found, key=lambda d: abs(d - value))[:most])
    return f"{shown}" + (f" or another divisor of {n}" if len(shown) < len(found) else "")
