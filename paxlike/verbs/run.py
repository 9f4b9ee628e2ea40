"""Verbs that run a model: train, generate, pack, eval, serve."""

import dataclasses
import functools
import json
import signal
import sys
from pathlib import Path
from typing import Annotated

from paxlike.config import Config, Hosts, MeshConfig, UserError, load
from paxlike.files import check_free
from paxlike.verbs.flags import flags_of, need, platform, take


def train_verb(arguments: list[str]) -> None:
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

    path, rest = take(arguments, "CONFIG", "train")
    flags = flags_of(TrainFlags, rest, "paxlike train CONFIG", TrainFlags(load(path) if path else Config()))

    runtime = platform()
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


@dataclasses.dataclass(frozen=True)
class GenerateFlags:
    """Continue PROMPT with RUN's newest checkpoint, or with the packed model RUN (see `paxlike pack`)."""

    max_new_tokens: int = 200
    """Fewer where the model ends the text."""
    temperature: float = 0.8
    """0: always the most likely token."""
    top_k: int = 40
    """Only the k most likely tokens. 0: all."""
    top_p: float = 1.0
    """Only the fewest most likely tokens whose probabilities sum to p."""
    seed: int = 0
    """Of the draws: the same seed gives the same text."""
    step: int | None = None
    """A checkpoint other than the newest."""
    fake_devices: int | None = None
    """CPU devices made out of this machine's own."""
    hosts: Hosts = dataclasses.field(default_factory=Hosts)


def generate_verb(arguments: list[str]) -> None:
    path, rest = take(arguments, "RUN", "generate")
    prompt, rest = take(rest, "PROMPT", "generate RUN")
    flags = flags_of(GenerateFlags, rest, "paxlike generate RUN PROMPT")
    runtime = platform()
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
    """Pack RUN's newest checkpoint, which was trained with `model.quant`, into a new FILE."""

    step: int | None = None
    """A checkpoint other than the newest."""


def pack_verb(arguments: list[str]) -> None:
    path, rest = take(arguments, "RUN", "pack")
    file, rest = take(rest, "FILE", "pack RUN")
    flags = flags_of(PackFlags, rest, "paxlike pack RUN FILE")
    check_free(Path(file))  # before the model is read
    platform().start()
    from paxlike.train.packed import save_packed
    from paxlike.train.trained import open_trained

    trained = open_trained(Path(path).absolute(), step=flags.step)
    size = save_packed(Path(file).absolute(), trained)
    print(f"{file}: step {trained.step}, {size:,} bytes")


@dataclasses.dataclass(frozen=True)
class EvalFlags:
    """Loss of RUN's newest checkpoint on its validation split, its scores in tasks of the lm-evaluation-harness (extra `eval`), or the
    metrics of a Task or Mixture of seqio (extra `seqio`)."""

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
    seqio_mixture: str = ""
    """A registered Task or Mixture, in place of the loss."""
    module: str = ""
    """The Python file that registers it."""
    split: str = "validation"
    """Its split."""
    limit: int | None = None
    """Questions of each task. Without it, all."""
    batch_size: int = 16
    """Sequences of a task that are scored together."""
    json: bool = False
    """A task's numbers for machines."""
    fake_devices: int | None = None
    """CPU devices made out of this machine's own."""
    hosts: Hosts = dataclasses.field(default_factory=Hosts)


def evaluate_verb(arguments: list[str]) -> None:
    path, rest = take(arguments, "RUN", "eval")
    flags = flags_of(EvalFlags, rest, "paxlike eval RUN")
    runtime = platform()
    runtime.start(flags.fake_devices, flags.hosts)
    import jax

    from paxlike.data.location import located
    from paxlike.train.trained import evaluate_run

    if flags.tasks:
        _eval_tasks(located(path), flags)
        return runtime.finish()
    if flags.seqio_mixture:
        _eval_mixture(located(path), flags)
        return runtime.finish()
    step, found = evaluate_run(located(path), flags.mesh, flags.step, flags.batches)
    show = print if jax.process_index() == 0 else lambda _: None
    show(f"step {step}: loss {found['loss']:.4f}, accuracy {found['accuracy']:.1%} over {found['tokens']:,} tokens")
    runtime.finish()


def _eval_tasks(folder: Path, flags: EvalFlags) -> None:
    need("lm_eval", "eval")
    import jax

    from paxlike.interop.harness import evaluate_tasks
    from paxlike.train.trained import open_trained

    trained = open_trained(folder, flags.mesh, flags.step)
    numbers, table = evaluate_tasks(
        trained, list(flags.tasks), flags.task_folder.absolute(), flags.shots, flags.limit, flags.batch_size
    )
    if jax.process_index() == 0:
        print(json.dumps(numbers, indent=2) if flags.json else table)


def _eval_mixture(folder: Path, flags: EvalFlags) -> None:
    import jax

    from paxlike.interop.seqio_evaluator import evaluate_mixture
    from paxlike.train.trained import open_trained

    trained = open_trained(folder, flags.mesh, flags.step)
    numbers = evaluate_mixture(trained, flags.seqio_mixture, flags.module, flags.split, flags.limit, flags.batch_size)
    if jax.process_index() == 0:
        lines = [f"{task}: {name} {value:.4f}" for task, found in numbers.items() for name, value in found.items()]
        print(json.dumps(numbers, indent=2) if flags.json else "\n".join(lines))


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


def serve_verb(arguments: list[str]) -> None:
    path, rest = take(arguments, "RUN", "serve")
    flags = flags_of(ServeFlags, rest, "paxlike serve RUN")
    need("starlette", "serve")
    need("uvicorn", "serve")
    if flags.rows < 1 or flags.waiting < 1:
        raise UserError(f"--rows is {flags.rows} and --waiting {flags.waiting}; both must be 1 or more.")
    runtime = platform()
    runtime.start(flags.fake_devices)
    from paxlike.interop.engine import Engine
    from paxlike.interop.serve import run
    from paxlike.train.trained import open_trained

    trained = open_trained(Path(path).absolute(), flags.mesh, flags.step)
    name = flags.name or trained.config.name
    print(f"serving {name} at http://{flags.host}:{flags.port}/v1/completions; Ctrl-C ends it", flush=True)
    run(Engine(trained, flags.rows, flags.waiting), name, flags.host, flags.port)
