"""Configs in files: the Python file a run is started with, the JSON beside its checkpoints, and how two configs differ."""

import dataclasses
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

from paxlike.config.check import ConfigError, UserError, near, require
from paxlike.config.whole import Config


def load(path: str | Path) -> Config:
    """The Config that a config file's `config()` returns. Raises UserError naming the file and what is wrong."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no config file {path}.{near(path, map(str, path.parent.glob('*.py')))}")
    try:
        config = runpy.run_path(str(path)).get("config")
        require(callable(config), "it defines no function `config() -> Config`.")
        made = config()
        require(isinstance(made, Config), f"config() returned a {type(made).__name__}, not a paxlike Config.")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}.{_near_field(error)}") from error
    return made


def _near_field(error: Exception) -> str:
    """What a misspelt field was probably meant to be, from Python's own message."""
    misspelt = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    kind = misspelt and {kind.__name__: kind for kind in _sections(Config)}.get(misspelt.group(1))
    return near(misspelt.group(2), [field.name for field in dataclasses.fields(kind)]) if kind else ""


def _sections(kind: type) -> Iterator[type]:
    """A config's dataclass and those of its fields."""
    yield kind
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from _sections(field.type)


def to_json(config: Config) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """The Config written by `to_json`. Raises ConfigError naming an unknown field, ValueError where it is no JSON."""
    return _build(Config, json.loads(text), "")


def _build(kind: type, values: dict, prefix: str) -> object:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    require(isinstance(values, dict), f"config section {prefix.rstrip('.') or 'of all'} is {values!r}, no section.")
    for name in values:
        require(
            name in fields,
            f"unknown config field {prefix}{name}; fields are {', '.join(fields)}.{near(name, fields)}",
        )
    made = {}
    for name, value in values.items():
        default = fields[name].default_factory
        if default is not dataclasses.MISSING:
            made[name] = _build(default, value, f"{prefix}{name}.")
        else:
            made[name] = tuple(tuple(row) for row in value) if isinstance(value, list) else value
    return kind(**made)


def differences(old: Config, new: Config) -> list[str]:
    """`field: old -> new` for every field in which two configs differ."""

    def flat(value: dict, prefix: str = "") -> dict:
        out = {}
        for name, inner in value.items():
            out.update(flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {prefix + name: inner})
        return out

    a, b = flat(dataclasses.asdict(old)), flat(dataclasses.asdict(new))
    return [f"{name}: {a[name]!r} -> {b[name]!r}" for name in a if a[name] != b[name]]
