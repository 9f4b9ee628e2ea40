"""The command line: a verb, what it works on, and flags. Heavy modules are imported by the verb that needs them."""

import dataclasses
import difflib
import errno
import functools
import importlib.util
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from paxlike.config import Config, Hosts, JobError, MeshConfig, SaveError, UserError, load

HELP = """\
usage: paxlike VERB …

  train CONFIG [--run-dir DIR] [--fake-devices N] [--model.layers 4 …]
                        train; the same command on the same run folder goes on where it stopped
  eval RUN              loss of a run's newest checkpoint on its validation split; with --tasks, the lm-evaluation-harness's tasks
  generate RUN PROMPT   text from a run's newest checkpoint, or from a packed model
  pack RUN FILE         a run's 1-bit or 2-bit weights, packed into one file (safetensors)
  convert to-hf RUN OUT     a run as a folder for Hugging Face's AutoModelForCausalLM and AutoTokenizer
  convert from-hf DIR OUT   such a folder (Cohere or Llama) as a run
  convert to-t5x RUN OUT    a run as a T5X checkpoint
  convert from-t5x CHECKPOINT CONFIG OUT
                        a T5X checkpoint as a run of a config, which goes on training
  serve RUN             an OpenAI-compatible HTTP endpoint
  info CONFIG           parameters, FLOPs, memory and sharding of a config, without running it
  report RUN [RUN …]    what runs did: speed, MFU and HFU, goodput, memory; a table, and a page with plots
  plan CONFIG --topology v4:4x4x4
                        compile the train step for a cluster that is not here: memory, collectives, speed
  data prepare          texts into a token store to train on
  data verify STORE     check every byte of a token store against its manifest

`paxlike VERB --help` lists a verb's flags. CONFIG is a Python file such as configs/tiny.py, RUN a run folder.
"""

# What the machine, not the program, is to blame for: shown as one message.
_ENVIRONMENT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


def main() -> None:
    """Exit codes: 0 done, 1 a check failed, 2 something the user can mend, 3 another process of the job failed or is lost,
    130 or 143 stopped by SIGINT or SIGTERM (`train` has saved)."""
    arguments = sys.argv[1:]
    try:
        _dispatch(arguments)
    except SaveError as error:
        print(f"paxlike: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)
    except UserError as error:
        _fail(str(error))
    except JobError as error:
        _fail(str(error), 3)
    except OSError as error:
        if error.errno not in _ENVIRONMENT_ERRORS:
            raise
        _fail(f"{error.strerror}: {error.filename or 'while writing'}. What was written before is as it was.")
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str, code: int = 2) -> None:
    print(f"paxlike: {message}", file=sys.stderr, flush=True)
    runtime = sys.modules.get("paxlike.parallel.runtime")
    if runtime and runtime.client():
        # A usual exit would wait for processes that may never come.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


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
        """Run on this many CPU devices made out of this machine's own, to try a mesh. Of many processes, each has as many."""
        hosts: Hosts = dataclasses.field(default_factory=Hosts)
        deterministic: bool = False
        """Bitwise the same losses in every run on the same devices, also on GPUs, where it costs speed."""

    path, rest = _take(arguments, "CONFIG", "train")
    flags = _flags(TrainFlags, rest, "paxlike train CONFIG", TrainFlags(load(path) if path else Config()))

    from paxlike.parallel import runtime

    runtime.start(flags.fake_devices, flags.hosts, flags.deterministic)
    import jax

    from paxlike.data.location import located
    from paxlike.parallel import job
    from paxlike.train.loop import train
    from paxlike.train.run import next_free

    chosen = job.first("run folder", lambda: str(flags.run_dir or next_free(Path("runs"), flags.config.name)), 60)
    folder = located(chosen)
    result = train(flags.config, folder)
    show = functools.partial(print, flush=True) if jax.process_index() == 0 else lambda _: None
    if result.stopped_by:
        show(f"stopped by {result.stopped_by} at step {result.step}; go on with --run-dir {folder}")
        runtime.finish()
        sys.exit(128 + signal.Signals[result.stopped_by])
    if flags.config.log.sample:
        show("\nsample:")
        _print_continued(folder, flags.config.log.sample, GenerateFlags())
    show(f"\nrun folder: {folder}")
    runtime.finish()


# ---- generate, eval -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class GenerateFlags:
    """Continue PROMPT with RUN's newest checkpoint, or with the packed model RUN (see `paxlike pack`)."""

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
    hosts: Hosts = dataclasses.field(default_factory=Hosts)


def _generate(arguments: list[str]) -> None:
    path, rest = _take(arguments, "RUN", "generate")
    prompt, rest = _take(rest, "PROMPT", "generate RUN")
    flags = _flags(GenerateFlags, rest, "paxlike generate RUN PROMPT")
    from paxlike.parallel import runtime

    runtime.start(flags.fake_devices, flags.hosts)
    from paxlike.data.location import located

    _print_continued(located(path), prompt, flags)
    runtime.finish()


def _print_continued(folder: Path, prompt: str, flags: GenerateFlags) -> None:
    """Prints the prompt, and its continuation as it arrives."""
    import jax

    from paxlike.infer.generate import Generator, Sampling
    from paxlike.infer.stream import TextStream
    from paxlike.train.packed import open_packed
    from paxlike.train.trained import open_trained

    trained = open_packed(folder) if folder.is_file() else open_trained(folder, step=flags.step)
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
class PackFlags:
    """Pack RUN's newest checkpoint, which was trained with `model.quant`, into FILE."""

    step: int | None = None
    """A checkpoint other than the newest."""


def _pack(arguments: list[str]) -> None:
    path, rest = _take(arguments, "RUN", "pack")
    file, rest = _take(rest, "FILE", "pack RUN")
    flags = _flags(PackFlags, rest, "paxlike pack RUN FILE")
    from paxlike.train.packed import save_packed
    from paxlike.train.trained import open_trained

    trained = open_trained(Path(path).absolute(), step=flags.step)
    size = save_packed(Path(file).absolute(), trained)
    print(f"{file}: step {trained.step}, {size:,} bytes")


@dataclasses.dataclass(frozen=True)
class EvalFlags:
    """Loss of RUN's newest checkpoint on its validation split, or its scores in tasks of the lm-evaluation-harness (extra `eval`)."""

    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    step: int | None = None
    """A checkpoint other than the newest."""
    batches: int = 0
    """Batches to evaluate. 0: the whole split."""
    tasks: tuple[str, ...] = ()
    """Tasks of the harness, by name, in place of the loss."""
    task_folder: Path = Path("tasks")
    """Where the tasks' YAML files are; data_files are relative to it."""
    shots: int | None = None
    """Examples shown before each question of a task. Without it, as many as the task says."""
    limit: int | None = None
    """Questions of each task. Without it, all."""
    batch_size: int = 16
    """Sequences of a task that are scored together."""
    json: bool = False
    """A task's numbers for machines."""
    fake_devices: int | None = None
    """CPU devices made out of this machine's own."""
    hosts: Hosts = dataclasses.field(default_factory=Hosts)


def _eval(arguments: list[str]) -> None:
    path, rest = _take(arguments, "RUN", "eval")
    flags = _flags(EvalFlags, rest, "paxlike eval RUN")
    from paxlike.parallel import runtime

    runtime.start(flags.fake_devices, flags.hosts)
    import jax

    from paxlike.data.location import located
    from paxlike.train.trained import evaluate_run

    if flags.tasks:
        _eval_tasks(located(path), flags)
        return runtime.finish()
    step, found = evaluate_run(located(path), flags.mesh, flags.step, flags.batches)
    show = print if jax.process_index() == 0 else lambda _: None
    show(f"step {step}: loss {found['loss']:.4f}, accuracy {found['accuracy']:.1%} over {found['tokens']:,} tokens")
    runtime.finish()


def _eval_tasks(folder: Path, flags: EvalFlags) -> None:
    _need("lm_eval", "eval")
    import jax

    from paxlike.interop.harness import evaluate_tasks
    from paxlike.train.trained import open_trained

    trained = open_trained(folder, flags.mesh, flags.step)
    numbers, table = evaluate_tasks(
        trained, list(flags.tasks), flags.task_folder.absolute(), flags.shots, flags.limit, flags.batch_size
    )
    if jax.process_index() == 0:
        print(json.dumps(numbers, indent=2) if flags.json else table)


def _need(module: str, extra: str) -> None:
    """Raises UserError where an optional library is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"this needs {module}, which is not installed: pip install 'paxlike[{extra}]'.")


# ---- serve ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ServeFlags:
    """Serve RUN's newest checkpoint over HTTP as OpenAI's completions (extra `serve`)."""

    host: str = "127.0.0.1"
    """Where to listen. Nobody is asked who they are: anything but this machine itself needs a guard in front."""
    port: int = 8000
    rows: int = 16
    """Texts that are generated together."""
    waiting: int = 256
    """Texts that may wait for a row; more are refused."""
    name: str | None = None
    """What clients call the model. Without it, the run's name."""
    mesh: MeshConfig | None = None
    """Without it, the largest `model` axis that fits."""
    step: int | None = None
    """A checkpoint other than the newest."""
    fake_devices: int | None = None
    """CPU devices made out of this machine's own."""


def _serve(arguments: list[str]) -> None:
    path, rest = _take(arguments, "RUN", "serve")
    flags = _flags(ServeFlags, rest, "paxlike serve RUN")
    _need("starlette", "serve")
    _need("uvicorn", "serve")
    if flags.rows < 1 or flags.waiting < 1:
        raise UserError(f"--rows is {flags.rows} and --waiting {flags.waiting}; both must be 1 or more.")
    from paxlike.parallel import runtime

    runtime.start(flags.fake_devices)
    from paxlike.interop.engine import Engine
    from paxlike.interop.serve import run
    from paxlike.train.trained import open_trained

    trained = open_trained(Path(path).absolute(), flags.mesh, flags.step)
    name = flags.name or trained.config.name
    print(f"serving {name} at http://{flags.host}:{flags.port}/v1/completions; Ctrl-C ends it", flush=True)
    run(Engine(trained, flags.rows, flags.waiting), name, flags.host, flags.port)


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


@dataclasses.dataclass(frozen=True)
class ToT5xFlags:
    """Write RUN's newest checkpoint into a new folder OUT as T5X's checkpointer lays it out."""

    step: int | None = None
    """A checkpoint other than the newest."""


def _convert_to_t5x(arguments: list[str]) -> None:
    run, out, flags = _source_and_out(arguments, "RUN", "convert to-t5x", ToT5xFlags)
    from paxlike.interop.t5x import to_t5x

    _tell_converted(to_t5x(run, out, flags.step))


def _convert_from_t5x(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class FromT5xFlags:
        """Make a run folder OUT of a T5X checkpoint, for the model and data of CONFIG."""

        config: Annotated[Config, tyro.conf.arg(name="")]

    checkpoint, rest = _take(arguments, "CHECKPOINT", "convert from-t5x")
    path, rest = _take(rest, "CONFIG", "convert from-t5x CHECKPOINT")
    out, rest = _take(rest, "OUT", "convert from-t5x CHECKPOINT CONFIG")
    default = FromT5xFlags(load(path) if path else Config())
    flags = _flags(FromT5xFlags, rest, "paxlike convert from-t5x CHECKPOINT CONFIG OUT", default)
    from paxlike.parallel import runtime

    runtime.start(fake_devices=1)
    from paxlike.data.grain_source import open_data
    from paxlike.interop.t5x import from_t5x

    store = open_data(flags.config.data)
    _tell_converted(from_t5x(Path(checkpoint).absolute(), flags.config, store, Path(out).absolute()))


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
    print(f"{converted.folder}: {converted.parameters:,} parameters, {converted.checked}")


# ---- report ---------------------------------------------------------------------------------------------------------


def _report(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class ReportFlags:
        """What one or more runs did, side by side: a table, and one HTML page with plots. JAX is not needed.

        Or, of a run made elsewhere: --config CONFIG --tokens-per-second 238300 --chip v4 --chips 6144
        """

        runs: tyro.conf.Positional[tuple[Path, ...]] = ()
        """Run folders."""
        html: Path | None = None
        """The page's file. Of one run it is RUN/report.html, of several report.html."""
        json: bool = False
        """Numbers for machines, and no page unless --html names one."""
        config: Path | None = None
        """A config in place of runs: percentages of a rate that is given."""
        tokens_per_second: float | None = None
        """Of all chips together."""
        chip: str | None = None
        """A name of the hardware table: v4, v5e, h100, …"""
        chips: float | None = None
        dtype: str = "bfloat16"
        """The number format whose peak is divided by."""

    flags = _flags(ReportFlags, arguments, "paxlike report")
    from paxlike.accounting.report.summary import for_json

    histories, summaries = _summaries(flags)
    if flags.json:
        print(json.dumps(for_json(summaries), indent=2, allow_nan=False))
    else:
        import rich

        from paxlike.accounting.report.table import describe

        rich.print(describe(summaries))
    default = None if flags.json or flags.config else Path("report.html")
    if default and len(flags.runs) == 1:
        default = flags.runs[0] / default
    if path := flags.html or default:
        from paxlike.accounting.report.page import page, write_page

        write_page(path, page(summaries, histories))
        if not flags.json:
            print(f"page: {path}")


def _summaries(flags) -> tuple[list, list[dict]]:
    """(histories, summaries) of the flags' runs, or of their config and rate. Raises UserError for flags that do not go together."""
    from paxlike.accounting.history import read_history
    from paxlike.accounting.report.summary import from_rate, summarize

    given = {f"--{name.replace('_', '-')}": getattr(flags, name) for name in ("tokens_per_second", "chip", "chips")}
    missing = [name for name, value in given.items() if value is None]
    if bool(flags.runs) == bool(flags.config):
        raise UserError("`paxlike report` needs either run folders or --config CONFIG: paxlike report RUN [RUN …]")
    if flags.config and missing:
        raise UserError(f"--config also needs {', '.join(missing)}: what was measured, and on what.")
    if flags.runs and len(missing) < len(given):
        raise UserError(f"{', '.join(set(given) - set(missing))} go with --config; a run folder says them itself.")
    histories = [read_history(run) for run in flags.runs]
    summaries = [summarize(history) for history in histories]
    if flags.config:
        config = load(flags.config)
        summaries = [from_rate(config, flags.tokens_per_second, flags.chip, flags.chips, flags.dtype)]
    return histories, summaries


# ---- plan -----------------------------------------------------------------------------------------------------------


def _plan(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class PlanFlags:
        """Compile CONFIG's train step for a cluster that is not here: does it fit, what does it send, how fast will it be."""

        config: Annotated[Config, tyro.conf.arg(name="")]
        topology: str = ""
        """v4:12x16x16 (TPU chips along each axis), h100:4x8 (hosts x GPUs of a host) or cpu:8."""
        pods: int | None = None
        """How many of them, joined by the data-center network. Without it, as many as mesh.pod."""
        sweep: bool = False
        """Compile it for several meshes, remat policies and batch sizes, and list them best first."""
        json: bool = False
        """Numbers for machines."""
        html: Path | None = None
        """Also write a page, in one file."""

    path, rest = _take(arguments, "CONFIG", "plan")
    flags = _flags(PlanFlags, rest, "paxlike plan CONFIG", PlanFlags(load(path) if path else Config()))
    if not flags.topology:
        raise UserError("`paxlike plan` needs a --topology: v4:4x4x4, h100:4x8, cpu:8.")
    from paxlike.plan.command import run

    sys.exit(run(flags.config, flags.topology, flags.pods, flags.sweep, flags.json, flags.html))


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
    "pack": _pack,
    "serve": _serve,
    "info": _info,
    "convert to-hf": _convert_to_hf,
    "convert from-hf": _convert_from_hf,
    "convert to-t5x": _convert_to_t5x,
    "convert from-t5x": _convert_from_t5x,
    "report": _report,
    "plan": _plan,
    "data prepare": _data_prepare,
    "data verify": _data_verify,
}
