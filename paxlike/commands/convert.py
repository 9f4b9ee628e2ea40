"""Commands that convert runs to and from other libraries' formats."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from paxlike.commands.flags import flags_of, platform, take
from paxlike.config import Config, UserError, load
from paxlike.files import check_new


@dataclasses.dataclass(frozen=True)
class ToHfFlags:
    """Export RUN to a new directory OUT that AutoModelForCausalLM and AutoTokenizer load."""

    step: int | None = None
    """Checkpoint step. Default: the newest."""
    shard_gigabytes: float = 5.0
    """Maximum size of a file. A larger model is split over several files."""


@dataclasses.dataclass(frozen=True)
class FromHfFlags:
    """Import a Hugging Face directory DIR as a run directory OUT: Llama, Mistral, Qwen, Gemma,
    OLMo, Cohere, GPT-NeoX or GPT-2, as safetensors.
    """


def to_hf(arguments: list[str]) -> None:
    run, out, flags = source_and_out(arguments, "RUN", "convert to-hf", ToHfFlags)
    if not flags.shard_gigabytes > 0:
        raise UserError(f"--shard-gigabytes is {flags.shard_gigabytes}; it must be above 0.")
    from paxlike.interop.hf import to_hf

    print_result(to_hf(run, out, flags.step, int(flags.shard_gigabytes * 1e9)))


def from_hf(arguments: list[str]) -> None:
    source, out, _ = source_and_out(arguments, "DIR", "convert from-hf", FromHfFlags)
    from paxlike.interop.hf import from_hf

    print_result(from_hf(source, out))


@dataclasses.dataclass(frozen=True)
class ToT5xFlags:
    """Export RUN to a new directory OUT in the format of T5X's checkpointer."""

    step: int | None = None
    """Checkpoint step. Default: the newest."""


def to_t5x(arguments: list[str]) -> None:
    run, out, flags = source_and_out(arguments, "RUN", "convert to-t5x", ToT5xFlags)
    from paxlike.interop.t5x import to_t5x

    print_result(to_t5x(run, out, flags.step))


def from_t5x(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class FromT5xFlags:
        """Import a T5X checkpoint as a run directory OUT, with the model and data of CONFIG."""

        config: Annotated[Config, tyro.conf.arg(name="")]

    checkpoint, rest = take(arguments, "CHECKPOINT", "convert from-t5x")
    path, rest = take(rest, "CONFIG", "convert from-t5x CHECKPOINT")
    out, rest = take(rest, "OUT", "convert from-t5x CHECKPOINT CONFIG")
    default = FromT5xFlags(load(path) if path else Config())
    flags = flags_of(FromT5xFlags, rest, "paxlike convert from-t5x CHECKPOINT CONFIG OUT", default)
    check_new(Path(out))
    runtime = platform()
    runtime.start(fake_devices=1)
    from paxlike.data.source import open_data
    from paxlike.interop.t5x import from_t5x

    store = open_data(flags.config.data)
    print_result(from_t5x(Path(checkpoint).absolute(), flags.config, store, Path(out).absolute()))


def source_and_out(
    arguments: list[str], what: str, command: str, kind: type
) -> tuple[Path, Path, Any]:
    """(source, output directory, flags) of a command that converts. Raises UserError if the output
    exists."""
    source, rest = take(arguments, what, command)
    out, rest = take(rest, "OUT", f"{command} {what}")
    flags = flags_of(kind, rest, f"paxlike {command} {what} OUT")
    check_new(Path(out))  # before anything is read
    runtime = platform()
    runtime.start(fake_devices=1)  # a conversion needs no accelerator, and one device is enough
    return Path(source).absolute(), Path(out).absolute(), flags


def print_result(converted) -> None:
    """Prints what was written and how it was checked."""
    for note in converted.notes:
        print(f"note: {note}")
    print(f"{converted.folder}: {converted.parameters:,} parameters, {converted.checked}")
