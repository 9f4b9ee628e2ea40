"""The result of `paxlike plan --tune`: a table, a command line, and a config file."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group

from paxlike.accounting.units import gib, si
from paxlike.config import Config, UserError
from paxlike.files import write_file
from paxlike.planning.communication_tables import new_table
from paxlike.planning.tune import SHOWN
from paxlike.training.compiler_options import as_environment


def differing(base: Config, config: Config) -> list[tuple[str, object]]:
    """(flag without dashes, value) of every field in which two configs differ."""

    def fields(a: Any, b: Any, prefix: str) -> list[tuple[str, object]]:
        found: list[tuple[str, object]] = []
        for field in dataclasses.fields(a):
            ours, other = getattr(a, field.name), getattr(b, field.name)
            if dataclasses.is_dataclass(ours) and type(ours) is type(other):
                found += fields(ours, other, f"{prefix}{field.name}.")
            elif ours != other:
                found.append((f"{prefix}{field.name}", other))
        return found

    return fields(base, config, "")


def describe_tuned(result: dict, config_path: str, changes: list[tuple[str, object]]) -> Group:
    """A table of the best candidates, the command line of the best, and the cost of the next.

    changes: of the best candidate, to the config file.
    """
    table = new_table("Best first", "changes", "fits", ">memory", ">step", ">MFU", "")
    for row in result["rows"][:SHOWN]:
        cells = ["", ""] if "mfu" not in row else [si(row["step"], "s", 3), f"{row['mfu']:.1%}"]
        fits, needed = "yes" if row["fits"] else "no", gib(row["needed"]) if row["needed"] else ""
        table.add_row(row["flags"] or "as given", fits, needed, *cells, row["error"][:50])
    lines = [
        f"{result['tried']} programs in {result['minutes']:.1f} minutes on {result['cluster']}"
    ]
    if result["left"]:
        lines.append(
            f"{result['left']} candidates were not tried; run the command again to continue from "
            "the cache."
        )
    best, *rest = result["rows"]
    if not best["fits"]:
        return Group(*lines, "", table, "No candidate fits.")
    free = f", {gib(best['usable'] - best['needed'])} free" if best["usable"] else ""
    lines += [
        "",
        f"Predicted MFU {best['mfu']:.1%}{free}:",
        "",
        f"    {command(config_path, changes, best['options'])}",
    ]
    following = next((row for row in rest if row["fits"]), None)
    if following:
        cost = following["seconds_per_token"] / best["seconds_per_token"] - 1
        lines.append(f"\nThe next best ({following['flags'] or 'as given'}) is {cost:.1%} slower.")
    return Group(table, *lines)


def command(
    config_path: str, changes: list[tuple[str, object]], options: Mapping[str, bool | str]
) -> str:
    """`paxlike train` with the changes as flags, and compiler options in the environment."""
    words = [*filter(None, [as_environment(options)]), "paxlike", "train", config_path]
    for flag, value in changes:
        words += [f"--{flag}", *(shlex.quote(str(part)) for part in _flat(value))]
    return " ".join(words)


def _flat(value: object) -> list[object]:
    """The words of a flag: the entries of a tuple, also of tuples in it."""
    return [word for part in value for word in _flat(part)] if isinstance(value, tuple) else [value]


def write_tuned_config(
    path: Path, result: dict, config_path: str, changes: list[tuple[str, object]]
) -> None:
    """Writes a config file with the changes of the best candidate. Raises UserError if no candidate
    fits, or if the file exists.
    """
    best = result["rows"][0]
    if not best["fits"]:
        raise UserError("no candidate fits, so there is no config to write.")
    if path.exists():
        raise UserError(f"{path} exists and is not overwritten. Choose another file.")
    sections: dict[str, dict] = {}
    for flag, value in changes:
        section, _, field = flag.rpartition(".")
        sections.setdefault(section, {})[field] = value
    replaced = "".join(
        f"    config = {_replacing('config', section.split('.') if section else [], fields)}\n"
        for section, fields in sections.items()
    )
    base = str(Path(config_path).resolve()) if Path(config_path).is_file() else config_path
    write_file(
        path,
        f'"""{result["config"]} tuned for {result["cluster"]}: predicted MFU {best["mfu"]:.1%}.\n\n'
        f'    {command(path.name, [], best["options"])}\n"""\n\n'
        "import dataclasses\n\nfrom paxlike.config import Config, load\n\n\n"
        f"def config() -> Config:\n    config = load({base!r})\n{replaced}    return config\n",
    )


def _replacing(name: str, sections: list[str], fields: dict) -> str:
    """`dataclasses.replace` of fields in nested sections, as source."""
    if not sections:
        values = ", ".join(f"{field}={value!r}" for field, value in fields.items())
    else:
        values = f"{sections[0]}={_replacing(f'{name}.{sections[0]}', sections[1:], fields)}"
    return f"dataclasses.replace({name}, {values})"
