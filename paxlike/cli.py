"""The command line: a verb, what it works on, and flags. Heavy modules are imported by the verb that needs them."""

import dataclasses
import difflib
import errno
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from paxlike.config import Config, MeshConfig, SaveError, UserError, load

HELP = """\
usage: paxlike VERB …

  train CONFIG [--run-dir DIR] [--fake-devices N] [--model.layers 4 …]
                        train; the same command on the same run folder goes on where it stopped
  eval RUN              loss of a run's newest checkpoint on its validation split
  generate RUN PROMPT   text from a run's newest checkpoint
  convert to-hf RUN OUT     a run as a folder for Hugging Face's AutoModelForCausalLM and AutoTokenizer
  convert from-hf DIR OUT   such a folder (Cohere or Llama) as a run
  info CONFIG           parameters, FLOPs, memory and sharding of a config, without running it
  data prepare          texts into a token store to train on
  data verify STORE     check every byte of a token store against its manifest

`paxlike VERB --help` lists a verb's flags. CONFIG is a Python file such as configs/tiny.py, RUN a run folder.
"""

# What the machine, not the program, is to blame for: shown as one message.
_ENVIRONMENT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


def main() -> None:
    """Exit codes: 0 done (also when stopped by a signal after saving), 1 a check failed, 2 something the user can mend, 130 interrupted."""
    arguments = sys.argv[1:]
    try:
        _dispatch(arguments)
    except SaveError as error:
        print(f"paxlike: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _ENVIRONMENT_ERRORS:
            raise
        _fail(f"{error.strerror}: {error.filename or 'while writing'}. What was written before is as it was.")
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"paxlike: {message}", file=sys.stderr)
    sys.exit(2)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    if arguments[0] == "--version":
        from paxlike import __version__

        print(__version__)
        return
    words = 2 if arguments[0] in ("data", "convert") else 1
    verb = " ".join(arguments[:words])
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        raise UserError(
            f"there is no verb {verb!r}." + (f" Perhaps you meant {near[0]!r}." if near else "") + f"\n\n{HELP}"
        )
    VERBS[verb](arguments[words:])


def _flags(kind: type, arguments: list[str], prog: str, default: object = None):
    """The flags of a verb as an instance of the dataclass `kind`; tyro answers --help and mistakes (exit code 2)."""
    import tyro

    return tyro.cli(kind, args=arguments, default=default, prog=prog, config=(tyro.conf.AvoidSubcommands,))


def _take(arguments: list[str], what: str, verb: str) -> tuple[str | None, list[str]]:
    """The positional word that a verb begins with, and the rest. None where only help is asked for."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if "-h" in arguments or "--help" in arguments:
        return None, arguments
    raise UserError(f"`paxlike {verb}` needs {what} first: paxlike {verb} {what} …")


def _unprefixed(name: str):
    import tyro

    return tyro.conf.arg(name=name)


# ---- train ----------------------------------------------------------------------------------------------------------


def _train(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class TrainFlags:
        """Train CONFIG. The same command on the same run folder goes on from its newest checkpoint."""

        config: Annotated[Config, tyro.conf.arg(name="")]
        run_dir: Path | None = None
        """The run folder. Without it a new one is made: runs/NAME-1, runs/NAME-2, …"""
        fake_devices: int | None = None
        """Run on this many CPU devices made out of this machine's own, to try a mesh."""

    path, rest = _take(arguments, "CONFIG", "train")
    flags = _flags(TrainFlags, rest, "paxlike train CONFIG", TrainFlags(load(path) if path else Config()))

    from paxlike.parallel import runtime

    runtime.start(flags.fake_devices)
    from paxlike.train.loop import train
    from paxlike.train.run import next_free

    folder = (flags.run_dir or next_free(Path("runs"), flags.config.name)).absolute()
    result = train(flags.config, folder)
    if result.stopped_by:
        print(f"stopped by {result.stopped_by} at step {result.step}; go on with --run-dir {folder}")
        return
    if flags.config.log.sample:
        print("\nsample:")
        _print_continued(folder, flags.config.log.sample, GenerateFlags())
    print(f"\nrun folder: {folder}")


# ---- generate, eval -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class GenerateFlags:
    """Continue PROMPT with RUN's newest checkpoint."""

    max_new_tokens: int = 200
    temperature: float = 0.8
    """0: always the most likely token."""
    top_k: int = 40
    """Only the k most likely tokens. 0: all."""
    top_p: float = 1.0
    """Only the fewest most likely tokens whose probabilities sum to p."""
    seed: int = 0
    step: int | None = None
    """A checkpoint other than the newest."""
    fake_devices: int | None = None
    """CPU devices made out of this machine's own."""


def _generate(arguments: list[str]) -> None:
    path, rest = _take(arguments, "RUN", "generate")
    prompt, rest = _take(rest, "PROMPT", "generate RUN")
    flags = _flags(GenerateFlags, rest, "paxlike generate RUN PROMPT")
    from paxlike.parallel import runtime

    runtime.start(flags.fake_devices)
    _print_continued(Path(path).absolute(), prompt, flags)


def _print_continued(folder: Path, prompt: str, flags: GenerateFlags) -> None:
    """Prints the prompt, and its continuation as it arrives."""
    import jax

    from paxlike.infer.generate import Generator, Sampling
    from paxlike.infer.stream import TextStream
    from paxlike.train.trained import open_trained

    trained = open_trained(folder, step=flags.step)
    tokens = trained.tokenizer.encode(prompt)
    show = lambda text: print(text, end="", flush=True) if jax.process_index() == 0 else None  # noqa: E731
    stream = TextStream(trained.tokenizer.decode, show)
    with jax.set_mesh(trained.mesh):
        generator = Generator(
            trained.config.model,
            trained.numerics,
            trained.params,
            trained.tokenizer.eod,
            len(tokens) + flags.max_new_tokens,
        )
        show(prompt)
        sampling = Sampling(flags.temperature, flags.top_k, flags.top_p)
        generator.generate([tokens], flags.max_new_tokens, sampling, flags.seed, lambda row, token: stream.add(token))
        stream.close()
    show("\n")


@dataclasses.dataclass(frozen=True)
class EvalFlags:
    """Loss of RUN's newest checkpoint on its validation split."""

    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    step: int | None = None
    """A checkpoint other than the newest."""
    batches: int = 0
    """Batches to evaluate. 0: the whole split."""
    fake_devices: int | None = None
    """CPU devices made out of this machine's own."""


def _eval(arguments: list[str]) -> None:
    path, rest = _take(arguments, "RUN", "eval")
    flags = _flags(EvalFlags, rest, "paxlike eval RUN")
    from paxlike.parallel import runtime

    runtime.start(flags.fake_devices)
    from paxlike.train.trained import evaluate_run

    step, found = evaluate_run(Path(path).absolute(), flags.mesh, flags.step, flags.batches)
    print(f"step {step}: loss {found['loss']:.4f}, accuracy {found['accuracy']:.1%} over {found['tokens']:,} tokens")


# ---- info -----------------------------------------------------------------------------------------------------------


def _info(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class InfoFlags:
        """What CONFIG is: parameters, FLOPs per token, memory per device and sharding. Nothing is run."""

        config: Annotated[Config, tyro.conf.arg(name="")]
        devices: int | None = None
        """Devices of the mesh, where the config leaves one of its axes open (-1)."""
        energy: bool = False
        """Joules of a forward pass by precision and process node."""
        flops: bool = False
        """Count the train step's FLOPs three ways, by formula, from the traced and from the compiled program (seconds; the rest needs
        no JAX). Exit code 1 where more than 2 % is left unexplained."""
        json: bool = False
        """Numbers for machines."""

    path, rest = _take(arguments, "CONFIG", "info")
    flags = _flags(InfoFlags, rest, "paxlike info CONFIG", InfoFlags(load(path) if path else Config()))
    from paxlike.accounting.info import as_dict, countings_table, describe

    attention, countings = _countings(flags.config) if flags.flops else ("", ())
    if flags.json:
        told = as_dict(flags.config, flags.devices, flags.energy)
        told["flops_per_token"]["countings"] = [counting.as_dict() for counting in countings]
        print(json.dumps(told, indent=2))
    else:
        import rich

        extra = [countings_table(attention, countings)] if countings else []
        extra += _sharding(flags.config, flags.devices)
        rich.print(describe(flags.config, flags.devices, flags.energy, extra))
    if not all(counting.agrees for counting in countings):
        print("paxlike: the countings of FLOPs do not agree; see the table.", file=sys.stderr)
        sys.exit(1)


def _countings(config: Config) -> tuple[str, tuple]:
    from paxlike.parallel import runtime

    runtime.start()
    from paxlike.plan.countings import count_three_ways

    return count_three_ways(config)


def _sharding(config: Config, devices: int | None) -> list:
    """The sharding table, where the mesh is known."""
    from paxlike.accounting.parameters import stored_shapes
    from paxlike.parallel.rules import MESH_AXES
    from paxlike.parallel.table import sharding_table

    sizes = (config.mesh.pod, config.mesh.data, config.mesh.model)
    if devices is None and -1 in sizes:
        return []
    mesh = dict(zip(MESH_AXES, config.mesh.resolve(devices or math.prod(sizes)), strict=True))
    return [sharding_table(stored_shapes(config.model), mesh)]


# ---- convert --------------------------------------------------------------------------------------------------------


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


def _convert_to_hf(arguments: list[str]) -> None:
    run, out, flags = _source_and_out(arguments, "RUN", "convert to-hf", ToHfFlags)
    if not flags.shard_gigabytes > 0:
        raise UserError(f"--shard-gigabytes is {flags.shard_gigabytes}; it must be above 0.")
    from paxlike.interop.hf import to_hf

    _tell_converted(to_hf(run, out, flags.step, int(flags.shard_gigabytes * 1e9)))


def _convert_from_hf(arguments: list[str]) -> None:
    source, out, _ = _source_and_out(arguments, "DIR", "convert from-hf", FromHfFlags)
    from paxlike.interop.hf import from_hf

    _tell_converted(from_hf(source, out))


def _source_and_out(arguments: list[str], what: str, verb: str, kind: type) -> tuple[Path, Path, object]:
    source, rest = _take(arguments, what, verb)
    out, rest = _take(rest, "OUT", f"{verb} {what}")
    flags = _flags(kind, rest, f"paxlike {verb} {what} OUT")
    from paxlike.parallel import runtime

    runtime.start(fake_devices=1)  # a conversion needs no accelerator, and one device is enough
    return Path(source).absolute(), Path(out).absolute(), flags


def _tell_converted(converted) -> None:
    for note in converted.notes:
        print(f"note: {note}")
    print(
        f"{converted.folder}: {converted.parameters:,} parameters; logits differ by at most {converted.difference:.1e} of their "
        "deviation"
    )


# ---- data -----------------------------------------------------------------------------------------------------------


def _data_prepare(arguments: list[str]) -> None:
    from paxlike.data.prepare import PrepareConfig, prepare

    prepare(_flags(PrepareConfig, arguments, "paxlike data prepare"))


def _data_verify(arguments: list[str]) -> None:
    path, rest = _take(arguments, "STORE", "data verify")
    if path is None or rest:
        print(
            "usage: paxlike data verify STORE\n\nReads every byte of a token store and compares it with the manifest."
        )
        sys.exit(2 if path else 0)
    from paxlike.data.store import open_store

    store = open_store(path)
    store.verify()
    print(f"{path}: whole, fingerprint {store.fingerprint}")


VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "eval": _eval,
    "generate": _generate,
    "info": _info,
    "convert to-hf": _convert_to_hf,
    "convert from-hf": _convert_from_hf,
    "data prepare": _data_prepare,
    "data verify": _data_verify,
}
