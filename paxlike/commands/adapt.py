"""Commands on adapters: `paxlike adapt merge`, `export` and `import`."""

import dataclasses
from pathlib import Path

from paxlike.commands.convert import print_result, source_and_out
from paxlike.config import UserError


@dataclasses.dataclass(frozen=True)
class MergeFlags:
    """Write a complete run OUT whose weights contain the adapter of RUN."""

    step: int | None = None
    """Checkpoint step. Default: the newest."""


@dataclasses.dataclass(frozen=True)
class ExportFlags:
    """Export the adapter of RUN (LoRA, a prefix) to a new directory OUT in PEFT's format."""

    step: int | None = None
    """Checkpoint step. Default: the newest."""


@dataclasses.dataclass(frozen=True)
class ImportFlags:
    """Import LoRA or a prefix from PEFT's directory DIR as an adapter run OUT."""

    base: str = ""
    """The adapted model: a Hugging Face directory or a run directory."""


def merge_adapter(arguments: list[str]) -> None:
    run, out, flags = source_and_out(arguments, "RUN", "adapt merge", MergeFlags)
    from paxlike.interop.adapted_runs import merge

    print_result(merge(run, out, flags.step))


def export_adapter(arguments: list[str]) -> None:
    run, out, flags = source_and_out(arguments, "RUN", "adapt export", ExportFlags)
    from paxlike.interop.peft import export

    print_result(export(run, out, flags.step))


def import_adapter(arguments: list[str]) -> None:
    source, out, flags = source_and_out(arguments, "DIR", "adapt import", ImportFlags)
    if not flags.base:
        raise UserError("`paxlike adapt import` needs the adapted model: --base DIR.")
    from paxlike.interop.peft import load

    print_result(load(source, Path(flags.base).absolute(), out))
