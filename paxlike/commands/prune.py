"""The command that drops layers: `paxlike prune`."""

import dataclasses
from pathlib import Path

from paxlike.commands.convert import print_result
from paxlike.commands.flags import flags_of, platform, take
from paxlike.config import MeshConfig, UserError
from paxlike.files import check_new


@dataclasses.dataclass(frozen=True)
class TextFlags:
    store: str = ""
    """A token store whose validation split is measured. Default: the run's own data."""
    sequence_length: int = 0
    """Tokens per sequence. 0: that of the run, or of a store that is packed whole."""


@dataclasses.dataclass(frozen=True)
class PruneFlags:
    """Show by how much consecutive layers change the residual stream on validation text, and write
    a new run directory OUT without those that change it least. Without OUT, only show it.
    """

    layers: int | None = None
    """Number of consecutive layers to drop."""
    simple: bool = False
    """Drop the deepest layers but the very last, instead of those with the smallest distance."""
    samples: int = 1000
    """Sequences to measure, in whole batches; fewer if the validation split is smaller."""
    batch_size: int = 16
    """Sequences in a batch."""
    data: TextFlags = dataclasses.field(default_factory=TextFlags)
    html: Path | None = None
    """Also write the page with all distances to this file. OUT has it as pruning.html."""
    step: int | None = None
    """Checkpoint step. Default: the newest."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    fake_devices: int | None = None
    """Simulate this many CPU devices."""


def prune_command(arguments: list[str]) -> None:
    run, rest = take(arguments, "RUN", "prune")
    given = bool(rest) and not rest[0].startswith("-")
    out = Path(rest[0]).absolute() if given else None
    flags = flags_of(PruneFlags, rest[given:], "paxlike prune RUN OUT")
    _check(out, flags)
    runtime = platform()
    runtime.start(flags.fake_devices)
    import rich

    from paxlike.interop.pruned_runs import (
        Choice,
        measure_run,
        open_text,
        read_prunable,
        write_pruned,
    )
    from paxlike.training.layer_distances import Text

    folder, choice = Path(run).absolute(), Choice(flags.layers, flags.simple)
    config = read_prunable(folder, choice)
    source, data = open_text(folder, config, flags.data.store, flags.data.sequence_length)
    text = Text(source, data, flags.samples, flags.batch_size)
    pruning = measure_run(folder, choice, text, flags.mesh, flags.step)
    print(f"{pruning.about}: loss {pruning.measured.loss:.4f}")
    rich.print(pruning.table)
    if flags.html:
        pruning.write_page(flags.html)
        print(f"page: {flags.html}")
    if out:
        print_result(write_pruned(pruning, out, flags.mesh))


def _check(out: Path | None, flags: PruneFlags) -> None:
    """Raises UserError for flags that cannot work, before anything is read."""
    if (out is None) != (flags.layers is None):
        have, lack = ("OUT", "--layers") if out else ("--layers", "OUT")
        raise UserError(
            f"`paxlike prune` has {have} but no {lack}. To write a pruned run: paxlike prune RUN "
            "OUT --layers N. To see the distances of every N first: paxlike prune RUN"
        )
    if flags.simple and out is None:
        raise UserError("--simple chooses the layers to drop; give OUT and --layers N, too.")
    for flag, value in (("samples", flags.samples), ("batch-size", flags.batch_size)):
        if value < 1:
            raise UserError(f"--{flag} is {value}; it must be 1 or more.")
    if flags.data.sequence_length < 0:
        raise UserError(
            f"--data.sequence-length is {flags.data.sequence_length}; it must be 0 or more."
        )
    if out:
        check_new(out)
    if flags.html:
        from paxlike.accounting.report.document import check_page

        check_page(flags.html, "prune")
