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
    """Export the adapter of RUN to a new directory OUT: LoRA or a prefix in PEFT's format, ReFT in
    the layout of pyreft."""

    step: int | None = None
    """Checkpoint step. Default: the newest."""


@dataclasses.dataclass(frozen=True)
class ImportFlags:
    """Import an adapter from DIR as an adapter run OUT: LoRA or a prefix in PEFT's format, or ReFT
    in the layout of pyreft."""

    base: str = ""
    """The adapted model: a Hugging Face directory or a run directory."""
    positions: str = ""
    """ReFT: the changed positions of a prompt, such as f7+l7, if config.json does not have them."""


def merge_adapter(arguments: list[str]) -> None:
    run, out, flags = source_and_out(arguments, "RUN", "adapt merge", MergeFlags)
    from paxlike.interop.adapted_runs import merge

    print_result(merge(run, out, flags.step))


def export_adapter(arguments: list[str]) -> None:
    run, out, flags = source_and_out(arguments, "RUN", "adapt export", ExportFlags)
    from paxlike.interop import peft, pyreft
    from paxlike.training.run_directory import read_config

    export = pyreft.export if read_config(run).adapt.kind == "reft" else peft.export
    print_result(export(run, out, flags.step))


def import_adapter(arguments: list[str]) -> None:
    source, out, flags = source_and_out(arguments, "DIR", "adapt import", ImportFlags)
    if not flags.base:
        raise UserError("`paxlike adapt import` needs the adapted model: --base DIR.")
    from paxlike.interop import peft, pyreft

    base = Path(flags.base).absolute()
    if pyreft.is_folder(source):
        print_result(pyreft.load(source, base, out, flags.positions))
    else:
        print_result(peft.load(source, base, out))
