"""Config files: loading, the JSON copy in a run directory, and differences of two configs."""

import dataclasses
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from paxlike.config.config import Config
from paxlike.config.validation import ConfigError, UserError, near, require

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def load(path: str | Path) -> Config:
    """The Config returned by `config()` of a config file.

    `path` is a Python file, or the bare name of a config shipped with paxlike, such as `tiny`; an
    existing file takes precedence. Raises UserError naming the file and the problem.
    """
    path = _find(path)
    try:
        config = runpy.run_path(str(path)).get("config")
        if not callable(config):
            raise ConfigError("it defines no function `config() -> Config`.")
        made = config()
        require(
            isinstance(made, Config),
            f"config() returned a {type(made).__name__}, not a paxlike Config.",
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}.{_near_field(error)}") from error
    return made


def shipped() -> dict[str, Path]:
    """Name -> file of each config that comes with paxlike."""
    # setup.py installs configs/ of the repository as paxlike/configs.
    package = Path(__file__).parents[1]
    installed, source = package / "configs", package.parent / "configs"
    folder = installed if installed.is_dir() else source
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def _find(path: str | Path) -> Path:
    name, path = str(path), Path(path)
    if path.is_file():
        return path
    known = shipped()
    if name in known:
        return known[name]
    if path.suffix or len(path.parts) > 1:
        beside = near(path, map(str, path.parent.glob("*.py")))
        ours = f" paxlike comes with a config of that name: {path.stem}." * (path.stem in known)
        raise UserError(f"there is no config file {path}.{beside or ours}")
    raise UserError(
        f"there is no config {name!r}.{near(name, known)} Give a Python file, or one of "
        f"{', '.join(known)}."
    )


def _near_field(error: Exception) -> str:
    """A suggestion for a misspelled field, based on Python's error message."""
    misspelled = re.search(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    if not misspelled:
        return ""
    kind = {kind.__name__: kind for kind in _sections(Config)}.get(misspelled.group(1))
    names = [field.name for field in dataclasses.fields(kind)] if kind else []
    return near(misspelled.group(2), names)


def _sections(kind: type) -> Iterator[type]:
    """A config dataclass and those of its fields."""
    yield kind
    for field in dataclasses.fields(kind):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from _sections(field.type)


def to_json(config: Config) -> str:
    """The config as JSON, as it is stored in a run directory."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """The Config written by `to_json`.

    Raises ConfigError naming an unknown field or an invalid value, ValueError if it is not JSON.
    """
    values = json.loads(text)
    try:
        # Runs of versions in which it was a bool.
        if isinstance(qk_norm := values["model"]["qk_norm"], bool):
            values["model"]["qk_norm"] = "head" if qk_norm else "none"
    except (TypeError, KeyError):
        pass
    return _build(Config, values, "")


def _build(kind: type[T], values: dict, prefix: str) -> T:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    require(
        isinstance(values, dict),
        f"{f'config section {prefix[:-1]}' if prefix else 'the config'} is {values!r}; it must be "
        "a JSON object.",
    )
    for name in values:
        require(
            name in fields,
            f"unknown config field {prefix}{name}; fields are {', '.join(fields)}."
            f"{near(name, fields)}",
        )
    made = {}
    for name, value in values.items():
        default = fields[name].default_factory
        if isinstance(default, type):
            made[name] = _build(default, value, f"{prefix}{name}.")
        else:
            made[name] = _tuples(value)
    return kind(**made)


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def differences(old: Config, new: Config) -> list[str]:
    """`field: old -> new` for every field in which two configs differ."""

    def flat(value: dict, prefix: str = "") -> dict:
        out = {}
        for name, inner in value.items():
            out.update(
                flat(inner, f"{prefix}{name}.")
                if isinstance(inner, dict)
                else {prefix + name: inner}
            )
        return out

    a, b = flat(dataclasses.asdict(old)), flat(dataclasses.asdict(new))
    return [f"{name}: {a[name]!r} -> {b[name]!r}" for name in a if a[name] != b[name]]
