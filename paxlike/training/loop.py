"""The training loop. It reads from top to bottom and never waits for the step it just dispatched.

The loop dispatches step k, then reads the metrics of step k - 1: reading them waits for step k - 1
while step k is already queued. A step's time runs from when the previous step was ready on the
device until this step is ready (`clock.py`).
"""

import contextlib
import dataclasses
import functools
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from paxlike import __version__
from paxlike.accounting.history import recorded_goodput
from paxlike.config import Config, UserError
from paxlike.data.mixture_batches import MixtureBatches
from paxlike.data.source import (
    AnySource,
    check_vocabulary,
    open_data,
    train_batches,
    validation_batches,
    weights_at,
)
from paxlike.nn.numerics import Numerics
from paxlike.parallel import job
from paxlike.parallel.host_batches import local_rows
from paxlike.parallel.mesh import make_mesh
from paxlike.training import consistency
from paxlike.training.accounting import RunAccounting, program_memory
from paxlike.training.checkpoint import Checkpoints
from paxlike.training.clock import ReadyClock
from paxlike.training.compiler_options import compile_step
from paxlike.training.console import Console
from paxlike.training.evaluate import evaluate_parts
from paxlike.training.guard import Guard, SkippedBatches, Spike
from paxlike.training.init_source import Source
from paxlike.training.initial import Initial
from paxlike.training.metrics import Metrics, NoMetrics
from paxlike.training.profile import ProfileWindow
from paxlike.training.recovery import Recovery
from paxlike.training.run_directory import RunDirectory, check_visible
from paxlike.training.signals import StopRequest
from paxlike.training.state import State, abstract_state, check_fits, stored_parameters
from paxlike.training.step import DeviceBatch, Program, make_eval_step, on_mesh
from paxlike.training.terminal_rates import TerminalRates
from paxlike.training.watchdog import Watchdog

START_SECONDS = 120
"""Timeout for the startup barriers that every process should reach quickly."""
PREPARE_SECONDS = 7200
"""Timeout for preparing the default corpus."""
LOWER_SECONDS = 600
"""Timeout for every process to lower the train step."""


@dataclasses.dataclass
class Result:
    """The outcome of a call of `train`."""

    state: State
    step: int
    """Number of updates since the start of the run."""
    evaluation: dict[str, float] | None
    """The final evaluation, or None if a signal stopped the run."""
    stopped_by: str | None
    """The signal that stopped the run, or None."""


def train(config: Config, folder: Path, source: Source | None = None) -> Result:
    """Trains until `config.train.steps`. Resumes from the newest checkpoint if there is one.

    folder: the run directory. source: where the first parameters come from. Raises UserError.
    """
    job.exchange_host_names(socket.gethostname(), START_SECONDS)
    # Process 0 prepares the default corpus if needed; processes that share its cache reuse it.
    job.first("the data", lambda: bool(open_data(config.data)), PREPARE_SECONDS)
    store = job.each("the data", lambda: open_data(config.data), PREPARE_SECONDS)
    consistency.check_config(config, store, START_SECONDS)
    check_vocabulary(store, config.model)
    console = Console(config.train.steps, config.log.every, quiet=jax.process_index() > 0)
    with jax.set_mesh(make_mesh(config.mesh)), contextlib.ExitStack() as stack:
        loop = _Loop(config, store, console, source)
        stack.callback(loop.clock.close)
        stack.callback(loop.accounting.close)

        def open_directory() -> list[list[str]]:
            directory = RunDirectory(folder, config, store)
            loop.accept = stack.enter_context(contextlib.closing(directory)).accept
            return [directory.changes, directory.warnings]

        loop.changes, loop.warnings = job.first("the run directory", open_directory, START_SECONDS)
        job.each("the run directory", lambda: check_visible(folder), START_SECONDS)
        loop.skipped = SkippedBatches(folder)
        metrics = Metrics(folder, config) if jax.process_index() == 0 else NoMetrics(folder)
        stack.enter_context(contextlib.closing(metrics))
        stack.enter_context(console)
        profile = stack.enter_context(
            contextlib.closing(ProfileWindow(config.profile, folder / "profile", console.say))
        )
        stop = stack.enter_context(StopRequest())
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", config.checkpoint))
        # Entered last, so that it exits first: after an error in one process of several, the
        # watchdog ends this process before any other exit handler waits for the others.
        watchdog = stack.enter_context(Watchdog(config.watchdog, folder))
        return loop.run(metrics, profile, checkpoints, stop, watchdog)


class _Loop:
    def __init__(self, config: Config, store: AnySource, console: Console, source: Source | None):
        """Prepares the run. Every error that needs no run directory is raised here."""
        self.config, self.store, self.console = config, store, console
        train = config.train
        self.rows = {
            size: local_rows(size, train.accumulate)
            for size in {train.batch_size, *(n for n, _ in train.batch_ramp)}
        }
        program = Program.of(config, Numerics.of_run(config, jax.default_backend()))
        self.numerics, self.optimizer, self.train_step = program
        self.train_source = train_batches(store, config.data, train)
        self.validation_sources = validation_batches(store, config.data, train)
        self.eval_step = make_eval_step(config, self.numerics)
        self.like = abstract_state(config, self.numerics, self.optimizer)
        check_fits(self.like)
        self.initial = Initial(config, program[:2], store, source)
        self.changes: list[str] = []
        self.warnings: list[str] = []
        self.accept: Callable[[], None] = lambda: None
        self.skipped: SkippedBatches
        self.guard = Guard(config.guard)
        self.accounting = RunAccounting(config, self.numerics)
        self.goodput = self.accounting.goodput
        self.compiled: dict[tuple, jax.stages.Compiled] = {}
        self.pending: tuple[int, dict] | None = None
        self.clock = ReadyClock()
        self.ready = time.monotonic()
        self.terminal = TerminalRates(self.accounting, console, train.steps)

    def run(
        self,
        metrics: Metrics,
        profile: ProfileWindow,
        checkpoints: Checkpoints,
        stop: StopRequest,
        watchdog: Watchdog,
    ) -> Result:
        self.metrics, self.profile, self.stop, self.watchdog = metrics, profile, stop, watchdog
        self.checkpoints = checkpoints
        self.recovery = Recovery(
            self.config,
            checkpoints,
            self.skipped,
            self.like,
            lambda: self.initial.state(checkpoints.folder.parent, self.console.say),
            lambda: self.initial.frozen(checkpoints.folder.parent),
            self.console.say,
        )
        with watchdog.limited("the first collective over all devices", START_SECONDS):
            consistency.check_devices()
        with watchdog.paused("reading a checkpoint"):
            state, start = self.first_state()
        while True:
            try:
                return self.steps(state, start)
            except Spike as found:
                spike = found.with_traceback(None)
            # Outside the handler: the exception's traceback would keep the old state's memory.
            del state
            state, start = self.rewind(spike)

    def steps(self, state: State, start: int) -> Result:
        """Runs the steps from `start` to the last. Raises Spike."""
        config, profile = self.config, self.profile
        batches = self.train_batches(start)
        for step in range(start, config.train.steps):
            if self.stop.requested():
                return self.stopped(state, step)
            profile.before_step(step, functools.partial(self.wait_for_device, state))
            # xprof recognizes training steps by this name.
            with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
                with self.goodput.measure("data stall"):
                    batch = next(batches)
                train_step = self.compile(state, batch)
                with self.goodput.measure("step"):
                    with jax.transfer_guard("disallow"):
                        state, numbers = train_step(state, batch)
                    self.clock.watch(numbers)
                    self.read_pending()
            self.pending = (step + 1, numbers)
            if (step + 1) % config.checkpoint.every == 0 and step + 1 < config.train.steps:
                self.save(state, step + 1)
            if (
                config.eval.every
                and (step + 1) % config.eval.every == 0
                and step + 1 < config.train.steps
            ):
                self.evaluate(state, step + 1)
            self.checkpoints.check()
        return self.finished(state, start)

    # ---- start and end -----------------------------------------------------------------------

    def first_state(self) -> tuple[State, int]:
        """Returns the state and step to start from: the newest checkpoint's, or new ones."""
        config = self.config
        for change in self.changes:
            self.console.say(f"changed: {change}")
        for warning in self.warnings:
            self.console.say(f"WARNING: {warning}")
        state, start = self.recovery.restore()
        if start:
            self.console.say(f"resuming from step {start}")
        self.accept()
        earlier = recorded_goodput(self.metrics.path)
        if not earlier.empty:
            self.goodput.resume(*earlier.resumed_at(start, time.time()))
        mesh = dict(jax.sharding.get_mesh().shape)
        kind = jax.devices()[0].device_kind
        self.console.say(
            f"{config.name}: {stored_parameters(state)} on {len(jax.devices())} x {kind}, "
            f"mesh {' x '.join(f'{axis} {size}' for axis, size in mesh.items())}, "
            f"{self.numerics.compute}; {self.accounting.peak_source}"
        )
        self.metrics.event(
            "start",
            start,
            device=kind,
            devices=len(jax.devices()),
            mesh=mesh,
            numerics=dataclasses.asdict(self.numerics),
            jax=jax.__version__,
            paxlike=__version__,
            changes=self.changes,
            **self.accounting.start_fields(),
            **self.accounting.current_fields(),
        )
        return state, start

    def rewind(self, spike: Spike) -> tuple[State, int]:
        """Returns the state and step to resume from after a spike.

        Raises UserError if the run has used all its rewinds.
        """
        self.pending = None
        try:
            with self._timed("restart") as timer:
                state, start, fields = self.recovery.rewind(spike)
        except UserError:
            self.metrics.event(
                "fail", spike.update + 1, reason=spike.reason, **self.accounting.current_fields()
            )
            raise
        self.metrics.event(
            "rewind", start, seconds=timer(), **fields, **self.accounting.current_fields()
        )
        return state, start

    def stopped(self, state: State, step: int) -> Result:
        self.console.say(f"{self.stop.name}: saving step {step} and stopping")
        self.save(state, step)
        self.wait_for_checkpoint()
        self.metrics.event("stop", step, signal=self.stop.name, **self.accounting.current_fields())
        return Result(state, step, None, self.stop.name)

    def finished(self, state: State, start: int) -> Result:
        steps = self.config.train.steps
        if start < steps:
            self.save(state, steps)
        evaluation = self.evaluate(state, steps)
        self.wait_for_checkpoint()
        self.metrics.event("finish", steps, **self.accounting.current_fields())
        return Result(state, steps, evaluation, None)

    # ---- around the step ---------------------------------------------------------------------

    def train_batches(self, start: int) -> Iterator[DeviceBatch]:
        source, accumulate = self.train_source, self.config.train.accumulate
        for k, batch in enumerate(
            source.batches(start, self.rows.__getitem__, self.skipped.batch), start
        ):
            size = source.batch_size(self.skipped.batch(k))
            yield on_mesh(batch, self.rows[size], size, accumulate)

    def wait_for_device(self, state: State) -> None:
        self.read_pending()
        jax.block_until_ready(state)

    def compile(self, state: State, batch: DeviceBatch) -> jax.stages.Compiled:
        """Returns the compiled step for this batch's shape, compiling once per batch size."""
        shape = batch.tokens_ABT.shape
        if shape not in self.compiled:
            self.read_pending()
            with self._timed("compile") as timer:
                lowered = self.train_step.lower(state, batch)
                consistency.check_program(lowered, LOWER_SECONDS)
                kind = jax.devices()[0].device_kind
                self.compiled[shape] = compile_step(lowered, kind, self.console.say)
            seconds = timer()
            self.console.say(
                f"compiled the train step for batches {shape[0]} x {shape[1]} x {shape[2]} "
                f"in {seconds:.1f} s"
            )
            memory = program_memory(self.compiled[shape])
            self.metrics.event(
                "compile",
                int(state.step),
                seconds=seconds,
                batch=list(shape),
                memory=memory,
                **self.accounting.current_fields(),
            )
        return self.compiled[shape]

    def read_pending(self) -> None:
        """Reads and reports the metrics of the step before the newest one. Raises Spike."""
        if self.pending is None:
            return
        step, numbers = self.pending
        self.pending = None
        with self.goodput.measure("step"):
            values = {name: float(value) for name, value in jax.device_get(numbers).items()}
            ready = self.clock.ready()
        seconds, self.ready = max(ready - self.ready, 1e-9), ready
        self.watchdog.finished(step)
        batch = self.skipped.batch(step - 1)
        batch_tokens = self.config.train.batch_size_at(batch) * self.config.data.sequence_length
        values |= {"step_seconds": seconds, "tokens_per_second": batch_tokens / seconds}
        values |= self.accounting.utilization(values["tokens_per_second"])[0]
        extra = {"batch": batch, "batch_fingerprint": f"{int(values.pop('batch')):08x}"}
        if step % self.config.log.every == 0:
            extra |= self.accounting.current_fields()
        self.metrics.step(step, values, extra)
        self.guard.check(step, values["loss"], values["gradient_norm"])
        self.terminal.show(step, values, batch_tokens)

    def save(self, state: State, step: int) -> None:
        """Checks the step's metrics, so that a bad state is never saved, then starts saving."""
        self.read_pending()
        position = {
            "step": step,
            "sequences": self.recovery.sequences_before(step),
            "store": self.store.fingerprint,
        }
        with self._timed("checkpoint") as timer:
            self.checkpoints.save(state, step, position)
        self.metrics.event("checkpoint", step, seconds=timer(), **self.accounting.current_fields())

    def wait_for_checkpoint(self) -> None:
        with self._timed("checkpoint"):
            self.checkpoints.wait()

    def evaluate(self, state: State, step: int) -> dict[str, float]:
        self.read_pending()
        train = self.config.train
        rows = self.rows[train.batch_size]
        epochs: dict[str, float] = {}
        if isinstance(self.train_source, MixtureBatches):
            epochs = self.train_source.epochs(self.skipped.batch(step))

        def batches(source) -> Iterator[DeviceBatch]:
            for batch in source.batches(self.config.eval.batches, self.rows.__getitem__):
                yield on_mesh(batch, rows, train.batch_size, train.accumulate)

        with self._timed("evaluation") as timer:
            parts = {name: batches(one) for name, one in self.validation_sources.items()}
            result = evaluate_parts(
                self.eval_step, state.parts, parts, weights_at(self.store, step)
            )
        more: dict[str, object] = {"epochs": epochs} if epochs else {}
        self.metrics.event(
            "evaluation", step, seconds=timer(), **result, **more,
            **self.accounting.current_fields(),
        )  # fmt: skip
        self.console.say(
            f"evaluation at step {step}: loss {result['loss']:.4f}, "
            f"accuracy {result['accuracy']:.1%} over {result['tokens']:,} tokens"
        )
        if "loss_by_predictor" in result:
            self.console.say(
                f"  routed by the predictor: loss {result['loss_by_predictor']:.4f}, accuracy "
                f"{result['accuracy_by_predictor']:.1%}"
            )
        for name, count in epochs.items():
            self.console.say(
                f"  {name}: loss {result[f'loss {name}']:.4f}, {count:.2f} epochs read"
            )
        return result

    @contextlib.contextmanager
    def _timed(self, cause: str) -> Iterator[Callable[[], float]]:
        """Counts the time inside as `cause` instead of step time.

        Yields a function that returns the elapsed seconds once the block has ended.
        """
        begin = time.monotonic()
        with self.goodput.measure(cause), self.watchdog.paused(cause):
            yield lambda: round(self.ready - begin, 3)
        self.ready = time.monotonic()
