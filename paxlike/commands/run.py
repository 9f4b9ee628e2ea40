"""Commands that run a model: train, generate, pack, eval, serve."""

import dataclasses
import functools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

from paxlike.commands.flags import flags_of, given_fields, need, platform, take, take_text
from paxlike.config import Config, Hosts, MeshConfig, UserError, load
from paxlike.files import check_free


def train_command(arguments: list[str]) -> None:
    import tyro

    @dataclasses.dataclass(frozen=True)
    class TrainFlags:
        """Train a model, or resume an existing run from its newest checkpoint."""

        config: Annotated[Config, tyro.conf.arg(name="")]
        run_dir: Path | None = None
        """Run directory. Default: a new one, runs/NAME-1, runs/NAME-2, ..."""
        fake_devices: int | None = None
        """Simulate this many CPU devices in each process, to try a mesh."""
        hosts: Hosts = dataclasses.field(default_factory=Hosts)
        deterministic: bool = False
        """Make losses bitwise reproducible on GPUs too, at some cost in speed."""

    path, rest = take(arguments, "CONFIG", "train")
    flags = flags_of(
        TrainFlags, rest, "paxlike train CONFIG", TrainFlags(load(path) if path else Config())
    )

    runtime = platform()
    runtime.start(flags.fake_devices, flags.hosts, flags.deterministic)
    import jax

    from paxlike.api.training import train_here

    folder, result = train_here(flags.config, flags.run_dir, given_fields(rest, "model"))
    show = functools.partial(print, flush=True) if jax.process_index() == 0 else lambda _: None
    if result.stopped_by:
        show(
            f"stopped by {result.stopped_by} at step {result.step}; resume with --run-dir {folder}"
        )
        runtime.finish()
        sys.exit(128 + signal.Signals[result.stopped_by])
    if flags.config.log.sample:
        show("\nsample:")
        _print_continued(folder, flags.config.log.sample, GenerateFlags())
    show(f"\nrun directory: {folder}")
    runtime.finish()


@dataclasses.dataclass(frozen=True)
class GenerateFlags:
    """Generate text that continues PROMPT. RUN is a run directory or a packed model. With --chat,
    it answers PROMPT, or what you type (see `paxlike generate --chat --help`).
    """

    max_new_tokens: int | None = None
    """Maximum number of tokens; fewer if the model ends the text. Default: 200, or what fits the
    model's context.
    """
    temperature: float = 0.8
    """0 selects the most likely token each time."""
    top_k: int = 40
    """Sample from the k most likely tokens. 0: from all."""
    top_p: float = 1.0
    """Sample from the fewest most likely tokens whose probabilities sum to p."""
    seed: int = 0
    """Seed of sampling. The same seed gives the same text."""
    step: int | None = None
    """Checkpoint step. Default: the newest."""
    fake_devices: int | None = None
    """Simulate this many CPU devices."""
    hosts: Hosts = dataclasses.field(default_factory=Hosts)


def generate_command(arguments: list[str]) -> None:
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--chat" in before:
        from paxlike.commands.chat import chat_command

        chat_command(arguments)
        return
    path, rest = take(arguments, "RUN", "generate")
    prompt, rest = take_text(rest, "PROMPT", "generate RUN", GenerateFlags)
    flags = flags_of(GenerateFlags, rest, "paxlike generate RUN PROMPT")
    runtime = platform()
    runtime.start(flags.fake_devices, flags.hosts)
    from paxlike.data.location import located

    _print_continued(located(path), prompt, flags)
    runtime.finish()


def _print_continued(folder: Path, prompt: str, flags: GenerateFlags) -> None:
    """Prints the prompt, then its continuation token by token."""
    import jax

    from paxlike.api.run import open_run

    waiting = [prompt]  # printed with the first new text, so that errors come before it

    def show(text: str) -> None:
        if jax.process_index() == 0:
            print("".join(waiting) + text, end="", flush=True)
        waiting.clear()

    open_run(folder, flags.step).generate(
        [prompt],
        flags.max_new_tokens,
        flags.temperature,
        flags.top_k,
        flags.top_p,
        flags.seed,
        lambda _, text: show(text),
    )
    show("\n")


@dataclasses.dataclass(frozen=True)
class PackFlags:
    """Write the 1-bit or 2-bit weights of RUN, trained with `model.quant`, to a new FILE."""

    step: int | None = None
    """Checkpoint step. Default: the newest."""


def pack_command(arguments: list[str]) -> None:
    path, rest = take(arguments, "RUN", "pack")
    file, rest = take(rest, "FILE", "pack RUN")
    flags = flags_of(PackFlags, rest, "paxlike pack RUN FILE")
    check_free(Path(file))  # before the model is read
    platform().start()
    from paxlike.interop.init_sources import open_source
    from paxlike.training.loaded_run import load_run
    from paxlike.training.packed import save_packed

    trained = load_run(Path(path).absolute(), step=flags.step, open_base=open_source)
    size = save_packed(Path(file).absolute(), trained)
    print(f"{file}: step {trained.step}, {size:,} bytes")


@dataclasses.dataclass(frozen=True)
class MovedData:
    store: str = ""
    """Where the run's token store is, if it was moved since training."""


@dataclasses.dataclass(frozen=True)
class EvalFlags:
    """Report validation loss, the scores of lm-evaluation-harness tasks (extra `eval`), or the
    metrics of a seqio Task or Mixture (extra `seqio`).
    """

    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    step: int | None = None
    """Checkpoint step. Default: the newest."""
    batches: int = 0
    """Number of batches. 0: the whole split."""
    data: MovedData = dataclasses.field(default_factory=MovedData)
    tasks: tuple[str, ...] = ()
    """Names of harness tasks, separated by spaces or commas, to run instead of computing the
    loss.
    """
    task_folder: Path = Path("tasks")
    """Directory of the tasks' YAML files; their data_files are relative to it."""
    shots: int | None = None
    """Few-shot examples per question. Default: the task's own setting."""
    seqio_mixture: str = ""
    """A registered Task or Mixture to evaluate instead of the loss."""
    module: str = ""
    """Python file that registers the Task or Mixture."""
    split: str = "validation"
    """Split of the Task or Mixture."""
    limit: int | None = None
    """Maximum number of questions per task. Default: all."""
    batch_size: int = 16
    """Sequences scored in one batch."""
    json: bool = False
    """Print a task's results as JSON."""
    fake_devices: int | None = None
    """Simulate this many CPU devices."""
    hosts: Hosts = dataclasses.field(default_factory=Hosts)


def evaluate_command(arguments: list[str]) -> None:
    path, rest = take(arguments, "RUN", "eval")
    flags = flags_of(EvalFlags, rest, "paxlike eval RUN")
    runtime = platform()
    runtime.start(flags.fake_devices, flags.hosts)
    import jax

    from paxlike.api.run import open_run
    from paxlike.data.location import located

    if flags.tasks:
        _eval_tasks(located(path), flags)
        return runtime.finish()
    if flags.seqio_mixture:
        _eval_mixture(located(path), flags)
        return runtime.finish()
    run = open_run(path, flags.step, flags.mesh)
    found = run.evaluate(flags.batches, flags.data.store)
    show = print if jax.process_index() == 0 else lambda _: None
    show(
        f"step {run.step}: loss {found['loss']:.4f}, accuracy {found['accuracy']:.1%} over "
        f"{found['tokens']:,} tokens"
    )
    runtime.finish()


def _eval_tasks(folder: Path, flags: EvalFlags) -> None:
    need("lm_eval", "eval")
    import jax

    from paxlike.interop.init_sources import open_source
    from paxlike.interop.lm_eval_harness import evaluate_tasks
    from paxlike.training.loaded_run import load_run

    trained = load_run(folder, flags.mesh, flags.step, open_source)
    numbers, table = evaluate_tasks(
        trained,
        [task for word in flags.tasks for task in word.split(",") if task],
        flags.task_folder.absolute(),
        flags.shots,
        flags.limit,
        flags.batch_size,
    )
    if jax.process_index() == 0:
        print(json.dumps(numbers, indent=2) if flags.json else table)


def _eval_mixture(folder: Path, flags: EvalFlags) -> None:
    import jax

    from paxlike.interop.init_sources import open_source
    from paxlike.interop.seqio_evaluator import evaluate_mixture
    from paxlike.training.loaded_run import load_run

    trained = load_run(folder, flags.mesh, flags.step, open_source)
    numbers = evaluate_mixture(
        trained, flags.seqio_mixture, flags.module, flags.split, flags.limit, flags.batch_size
    )
    if jax.process_index() == 0:
        lines = [
            f"{task}: {name} {value:.4f}"
            for task, found in numbers.items()
            for name, value in found.items()
        ]
        print(json.dumps(numbers, indent=2) if flags.json else "\n".join(lines))


@dataclasses.dataclass(frozen=True)
class ServeFlags:
    """Serve RUN as OpenAI-compatible completions and chat over HTTP (extra `serve`)."""

    host: str = "127.0.0.1"
    """Address to listen on. There is no encryption: put a proxy in front of any address that other
    machines can reach.
    """
    port: int = 8000
    batch_slots: int = 16
    """Number of texts generated concurrently."""
    max_queued: int = 256
    """Maximum number of queued texts. More are rejected with status 503."""
    name: str | None = None
    """Model name that clients use. Default: the run's name."""
    adapter: tuple[str, ...] = ()
    """Adapters of RUN as NAME=PATH, adapter runs of LoRA or a prefix. A request's `model` selects;
    texts with different ones are generated in one batch.
    """
    api_key: str = ""
    """What requests to /v1 must send as `Authorization: Bearer KEY`. Default: the environment
    variable PAXLIKE_API_KEY; without either, none.
    """
    template: str = ""
    """Chat template: chatml, llama3, plain, or a Jinja file. Default: that of the run."""
    mesh: MeshConfig | None = None
    """Mesh. Default: the largest `model` axis that fits."""
    step: int | None = None
    """Checkpoint step. Default: the newest."""
    fake_devices: int | None = None
    """Simulate this many CPU devices."""


def serve_command(arguments: list[str]) -> None:
    path, rest = take(arguments, "RUN", "serve")
    flags = flags_of(ServeFlags, rest, "paxlike serve RUN")
    need("starlette", "serve")
    need("uvicorn", "serve")
    if flags.batch_slots < 1 or flags.max_queued < 1:
        raise UserError(
            f"--batch-slots is {flags.batch_slots} and --max-queued {flags.max_queued}; "
            "both must be 1 or more."
        )
    runtime = platform()
    runtime.start(flags.fake_devices)
    from paxlike.data.chat.template import found_template
    from paxlike.interop.engine import Engine
    from paxlike.interop.init_sources import open_source
    from paxlike.interop.serve import listen, run
    from paxlike.training.loaded_run import load_run

    listening = listen(flags.host, flags.port)
    folder = Path(path).absolute()
    trained = load_run(folder, flags.mesh, flags.step, open_source)
    template = found_template(trained.tokenizer, flags.template, folder / "tokenizer")
    names = [flags.name or trained.config.name]
    if flags.adapter:
        from paxlike.interop.served_adapters import add_adapters

        trained, found = add_adapters(trained, names[0], flags.adapter)
        names += found
    engine = Engine(trained, flags.batch_slots, flags.max_queued)
    port = listening.getsockname()[1]
    kind = "chat/completions" if template else "completions"
    print(
        f"serving {', '.join(names)} at http://{flags.host}:{port}/v1/{kind}; press Ctrl-C to stop",
        flush=True,
    )
    key = flags.api_key or os.environ.get("PAXLIKE_API_KEY", "")
    run(engine, names, listening, template, key)
