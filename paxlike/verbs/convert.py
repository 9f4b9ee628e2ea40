"""Verbs that write a run in another library's format, and read one."""

import dataclasses
from pathlib import Path
from typing import Annotated

from paxlike.config import Config, UserError, load
from paxlike.files import check_new
from paxlike.verbs.flags import flags_of, platform, take


@dataclasses.dataclass(frozen=True)
class ToHfFlags:
    """Write RUN's newest checkpoint into a new folder OUT that AutoModelForCausalLM and AutoTokenizer load."""

    step: int | None = None
    """A checkpoint other than the newest."""
    shard_gigabytes: float = 5.0
    """Largest size of a file; a larger model is cut into several."""


@dataclasses.dataclass(frozen=True)
class FromHfFlags:
    """Make a run folder OUT of a folder DIR with a CohereForCausalLM or LlamaForCausalLM in safetensors."""


def to_hf(arguments: list[str]) -> None:
    run, out, flags = _source_and_out(arguments, "RUN", "convert to-hf", ToHfFlags)
    if not flags.shard_gigabytes > 0:
        raise UserError(f"--shard-gigabytes is {flags.shard_gigabytes}; it must be above 0.")
    from paxlike.interop.hf import to_hf

    _tell_converted(to_hf(run, out, flags.step, int(flags.shard_gigabytes * 1e9)))


def from_hf(arguments: list[str]) -> None:
    source, out, _ = _source_and_out(arguments, "DIR", "convert from-hf", FromHfFlags)
    from paxlike.interop.hf import from_hf

    _tell_converted(from_hf(source, out))


@dataclasses.dataclass(frozen=True)
class ToT5xFlags:
    """Write RUN's newest checkpoint into a new folder OUT as T5X's checkpointer lays it out."""

    step: int | None = None
    """A checkpoint other than the newest."""


def to_t5x(arguments: list[str]) -> None:
    run, out, flags = _source_and_out(arguments, "RUN", "convert to-t5x", ToT5xFlags)
    from paxlike.interop.t5x import to_t5x

    _tell_converted(to_t5x(run, out, flags.step))


def from_t5x(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class FromT5xFlags:
        """Make a run folder OUT of a T5X checkpoint, for the model and data of CONFIG."""

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
    _tell_converted(from_t5x(Path(checkpoint).absolute(), flags.config, store, Path(out).absolute()))


def _source_and_out(arguments: list[str], what: str, verb: str, kind: type) -> tuple[Path, Path, object]:
    source, rest = take(arguments, what, verb)
    out, rest = take(rest, "OUT", f"{verb} {what}")
    flags = flags_of(kind, rest, f"paxlike {verb} {what} OUT")
    check_new(Path(out))  # before anything is read
    runtime = platform()
    runtime.start(fake_devices=1)  # a conversion needs no accelerator, and one device is enough
    return Path(source).absolute(), Path(out).absolute(), flags


def _tell_converted(converted) -> None:
    for note in converted.notes:
        print(f"note: {note}")
    print(f"{converted.folder}: {converted.parameters:,} parameters, {converted.checked}")
