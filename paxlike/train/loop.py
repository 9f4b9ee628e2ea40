"""The training loop: a recipe that reads from top to bottom and never waits for the device it has just given work.

Step k is dispatched, then the numbers of step k - 1 are read: reading them waits for k - 1 while k is queued already. A step's time is
from when the step before it was ready on the device until it is itself (`clock.py`).
"""

import contextlib
import dataclasses
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from paxlike import __version__
from paxlike.accounting.history import earlier_booking
from paxlike.config import Config, UserError
from paxlike.data.batch import Batch
from paxlike.data.source import Source, check_vocabulary, open_data, train_batches, validation_batches
from paxlike.nn.weight import Numerics
from paxlike.parallel import job
from paxlike.parallel.ingest import local_rows, to_devices
from paxlike.parallel.mesh import make_mesh
from paxlike.train import agreement
from paxlike.train.accounts import Accounts, program_memory
from paxlike.train.checkpoint import Checkpoints
from paxlike.train.clock import ReadyClock
from paxlike.train.console import Console
from paxlike.train.evaluate import evaluate
from paxlike.train.guard import Guard, Skipped, Spike
from paxlike.train.metrics import Metrics, NoMetrics
from paxlike.train.profile import ProfileWindow
from paxlike.train.run import Run, check_seen
from paxlike.train.signals import StopRequest
from paxlike.train.state import State, abstract_state, make_state
from paxlike.train.step import DeviceBatch, Program, make_eval_step
from paxlike.train.watchdog import Watchdog

START_SECONDS = 120
"""How long processes wait for each other at the points of the start that take none of them long."""
PREPARE_SECONDS = 7200
"""How long they wait for the default corpus to be prepared."""
LOWER_SECONDS = 600
"""How long they wait for each other to lower the train step."""


@dataclasses.dataclass
class Result:
    """How a call of `train` ended."""

    state: State
    step: int
    """Updates made since the run began."""
    evaluation: dict[str, float] | None
    """Of the finished run; None where it was stopped."""
    stopped_by: str | None
    """The signal that stopped it, or None."""


def train(config: Config, folder: Path) -> Result:
    """Trains until `config.train.steps`, from the run folder's newest checkpoint if it has one. Raises UserError."""
    job.introduce(socket.gethostname(), START_SECONDS)
    # The first process prepares the default corpus where that is to be done; those that share its cache find it there.
    job.first("the data", lambda: bool(open_data(config.data)), PREPARE_SECONDS)
    store = job.each("the data", lambda: open_data(config.data), PREPARE_SECONDS)
    agreement.check_config(config, store, START_SECONDS)
    check_vocabulary(store, config.model)
    console = Console(config.train.steps, config.log.every, quiet=jax.process_index() > 0)
    with jax.set_mesh(make_mesh(config.mesh)), contextlib.ExitStack() as stack:
        loop = _Loop(config, store, console)
        stack.callback(loop.clock.close)
        stack.callback(loop.accounts.close)
        opened = lambda: stack.enter_context(contextlib.closing(Run(folder, config, store)))  # noqa: E731
        loop.changes = job.first("the run folder", lambda: opened().changes, START_SECONDS)
        job.each("the run folder", lambda: check_seen(folder), START_SECONDS)
        loop.skipped = Skipped(folder)
        metrics = Metrics(folder, config) if jax.process_index() == 0 else NoMetrics(folder)
        stack.enter_context(contextlib.closing(metrics))
        stack.enter_context(console)
        profile = stack.enter_context(
            contextlib.closing(ProfileWindow(config.profile, folder / "profile", console.say))
        )
        stop = stack.enter_context(StopRequest())
        saved = stack.enter_context(Checkpoints(folder / "checkpoints", config.checkpoint))
        # Entered last: an error in one process of many ends it here, before anything waits for the others.
        watchdog = stack.enter_context(Watchdog(config.watchdog, folder))
        return loop.run(metrics, profile, saved, stop, watchdog)


class _Loop:
    def __init__(self, config: Config, store: Source, console: Console):
        """Everything that can be found wrong before a run folder is made."""
        self.config, self.store, self.console = config, store, console
        train = config.train
        self.rows = {
            size: local_rows(size, train.accumulate) for size in {train.batch_size, *(n for n, _ in train.batch_ramp)}
        }
        program = Program.of(config, Numerics.of(config.model, config.precision, jax.default_backend()))
        self.numerics, self.optimizer, self.train_step = program
        self.train_source = train_batches(store, config.data, train)
        self.validation_source = validation_batches(store, config.data, train)
        self.eval_step = make_eval_step(config, self.numerics)
        self.like = abstract_state(config, self.numerics, self.optimizer)
        self.changes: list[str] = []
        self.guard = Guard(config.guard)
        self.accounts = Accounts(config, self.numerics)
        self.goodput = self.accounts.goodput
        self.compiled: dict[tuple, Callable] = {}
        self.pending: tuple[int, dict] | None = None
        self.clock = ReadyClock()
        self.ready = time.monotonic()
        self.pace: float | None = None
        self.warned = False

    def run(
        self, metrics: Metrics, profile: ProfileWindow, saved: Checkpoints, stop: StopRequest, watchdog: Watchdog
    ) -> Result:
        self.metrics, self.profile, self.saved, self.stop, self.watchdog = metrics, profile, saved, stop, watchdog
        with watchdog.limited("the first sum over all devices", START_SECONDS):
            agreement.check_devices()
        with watchdog.paused("reading a checkpoint"):
            state, start = self.first_state()
        while True:
            try:
                return self.steps(state, start)
            except Spike as found:
                spike = (found.update, found.noticed, found.reason)
            # Outside of the handler, which would keep the state's memory.
            state, start = None, 0
            state, start = self.rewound(*spike)

    def steps(self, state: State, start: int) -> Result:
        """The steps from `start` to the end. Raises Spike."""
        config, profile = self.config, self.profile
        batches = self.train_batches(start)
        for step in range(start, config.train.steps):
            if self.stop.asked():
                return self.stopped(state, step)
            profile.before_step(step, lambda state=state: (self.read_pending(), jax.block_until_ready(state)))
            # The name is what xprof takes for a step of training.
            with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
                with self.goodput.book("data stall"):
                    batch = next(batches)
                train_step = self.compile(state, batch)
                with self.goodput.book("step"):
                    with jax.transfer_guard("disallow"):
                        state, numbers = train_step(state, batch)
                    self.clock.watch(numbers)
                    self.read_pending()
            self.pending = (step + 1, numbers)
            if (step + 1) % config.checkpoint.every == 0 and step + 1 < config.train.steps:
                self.save(state, step + 1)
            if config.eval.every and (step + 1) % config.eval.every == 0 and step + 1 < config.train.steps:
                self.evaluate(state, step + 1)
            self.saved.check()
        return self.finished(state, start)

    # ---- beginning and end ---------------------------------------------------------------------------------------------

    def first_state(self) -> tuple[State, int]:
        """The newest checkpoint that can be read; a new state where there is none."""
        config = self.config
        for change in self.changes:
            self.console.say(f"changed: {change}")
        state, start = self.restored()
        if start:
            self.console.say(f"going on from step {start}")
            if start > config.train.steps:
                raise UserError(
                    f"the run is at step {start} already, past train.steps {config.train.steps}; give more --train.steps."
                )
        earlier = earlier_booking(self.metrics.path)
        if not earlier.empty:
            self.goodput.resume(*earlier.resumed_at(start, time.time()))
        mesh = dict(jax.sharding.get_mesh().shape)
        kind = jax.devices()[0].device_kind
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        self.console.say(
            f"{config.name}: {parameters:,} stored parameters on {len(jax.devices())} x {kind}, "
            f"mesh {' x '.join(f'{axis} {size}' for axis, size in mesh.items())}, {self.numerics.compute}; {self.accounts.peak}"
        )
        self.metrics.event(
            "start", start, device=kind, devices=len(jax.devices()), mesh=mesh, numerics=dataclasses.asdict(self.numerics),
            jax=jax.__version__, paxlike=__version__, changes=self.changes, **self.accounts.started(), **self.accounts.so_far(),
        )  # fmt: skip
        return state, start

    def restored(self, before: int | None = None) -> tuple[State, int]:
        """The newest checkpoint, of step `before` at most, that can be read; a new state where there is none."""
        while (found := self.saved.restore_newest(self.like, before)) is not None:
            state, position, notes = found
            step = position["step"]
            for note in notes:
                self.console.say(note)
            if position["sequences"] == self.sequences_before(step):
                return state, step
            # Saved after a spike, by a process that ended when it had recorded what to skip, and not yet deleted this.
            del state, found
            self.saved.delete_after(before := step - 1)
        return make_state(self.config, self.numerics, self.optimizer), 0

    def rewound(self, update: int, noticed: int, reason: str) -> tuple[State, int]:
        """The state to go on from after a spike at `update`. Raises UserError where the run has been rewound often enough."""
        guard, self.pending = self.config.guard, None
        if len(self.skipped.rows) >= guard.rewinds:
            tried = f" after {guard.rewinds} rewinds, which is guard.rewinds" if guard.rewinds else ""
            raise UserError(
                f"at step {update + 1} {reason}{tried}; checkpoints {self.saved.steps()} are from before. Lower "
                "optim.learning_rate, set optim.clip, or let guard.rewinds be more."
            )
        begin = max(update - guard.back, 0)
        first = self.skipped.batch(begin)
        count = max(guard.skip, self.skipped.batch(noticed) + 1 - first)
        with self._timed("restart") as timer:
            # In this order: a process that ends in between finds checkpoints that do not belong to what is skipped, and drops them.
            self.skipped.add(first, count, f"step {update + 1}: {reason}")
            self.saved.delete_after(begin)
            state, start = self.restored(begin)
        self.console.say(
            f"spike at step {update + 1}: {reason}. Rewound to step {start}; from step {begin + 1} on, batches {first} … "
            f"{first + count - 1} are skipped (rewind {len(self.skipped.rows)} of {guard.rewinds})"
        )
        self.metrics.event(
            "rewind", start, seconds=timer(), spike=update + 1, reason=reason, first_batch=first, batches=count,
            **self.accounts.so_far(),
        )  # fmt: skip
        return state, start

    def stopped(self, state: State, step: int) -> Result:
        self.console.say(f"{self.stop.name}: saving step {step} and stopping")
        self.save(state, step)
        self.wait_saved()
        self.metrics.event("stop", step, signal=self.stop.name, **self.accounts.so_far())
        return Result(state, step, None, self.stop.name)

    def finished(self, state: State, start: int) -> Result:
        steps = self.config.train.steps
        if start < steps:
            self.save(state, steps)
        evaluation = self.evaluate(state, steps)
        self.wait_saved()
        self.metrics.event("finish", steps, **self.accounts.so_far())
        return Result(state, steps, evaluation, None)

    # ---- around the step -----------------------------------------------------------------------------------------------

    def train_batches(self, start: int) -> Iterator[DeviceBatch]:
        source, accumulate = self.train_source, self.config.train.accumulate
        for k, batch in enumerate(source.batches(start, self.rows.__getitem__, self.skipped.batch), start):
            size = source.batch_size(self.skipped.batch(k))
            yield on_mesh(batch, self.rows[size], size, accumulate)

    def compile(self, state: State, batch: DeviceBatch) -> Callable:
        """The compiled step for this batch's shape: one for the whole run, or one for each stage of the batch-size ramp."""
        shape = batch.tokens_ABT.shape
        if shape not in self.compiled:
            self.read_pending()
            with self._timed("compile") as timer:
                lowered = self.train_step.lower(state, batch)
                agreement.check_program(lowered, LOWER_SECONDS)
                self.compiled[shape] = lowered.compile()
            seconds = timer()
            self.console.say(
                f"compiled the train step for batches {shape[0]} x {shape[1]} x {shape[2]} in {seconds:.1f} s"
            )
            memory = program_memory(self.compiled[shape])
            self.metrics.event(
                "compile", int(state.step), seconds=seconds, batch=list(shape), memory=memory, **self.accounts.so_far()
            )
        return self.compiled[shape]

    def read_pending(self) -> None:
        """Reads and reports the numbers of the step before the one just dispatched. Raises Spike."""
        if self.pending is None:
            return
        step, numbers = self.pending
        self.pending = None
        with self.goodput.book("step"):
            values = {name: float(value) for name, value in jax.device_get(numbers).items()}
            ready = self.clock.ready()
        seconds, self.ready = max(ready - self.ready, 1e-9), ready
        self.watchdog.finished(step)
        batch = self.skipped.batch(step - 1)
        batch_tokens = self.config.train.batch_size_at(batch) * self.config.data.sequence_length
        values |= {"step_seconds": seconds, "tokens_per_second": batch_tokens / seconds}
        shares, warning = self.accounts.utilization(values["tokens_per_second"])
        values |= shares
        read = {"batch": batch, "batch_fingerprint": f"{int(values.pop('batch')):08x}"}
        now_and_then = self.accounts.so_far() if step % self.config.log.every == 0 else {}
        self.metrics.step(step, values, read | now_and_then)
        if warning and not self.warned:
            self.warned = True
            self.console.say(f"WARNING: {warning}")
        self.guard.judge(step, values["loss"], values["gradient_norm"])
        # The terminal shows the pace of some ten steps; the files have each step's own.
        self.pace = seconds if self.pace is None else 0.9 * self.pace + 0.1 * seconds
        paced = {
            name: values[name] * seconds / self.pace for name in ("tokens_per_second", "mfu", "hfu") if name in values
        }
        self.console.step(step, values | paced, (self.config.train.steps - step) * self.pace)

    def save(self, state: State, step: int) -> None:
        """Checks the step's numbers, so that a state gone wrong is never saved, then starts saving it."""
        self.read_pending()
        position = {
            "step": step,
            "sequences": self.sequences_before(step),
            "store": self.store.fingerprint,
        }
        with self._timed("checkpoint") as timer:
            self.saved.save(state, step, position)
        self.metrics.event("checkpoint", step, seconds=timer(), **self.accounts.so_far())

    def sequences_before(self, step: int) -> int:
        """Where the batch that comes after `step` updates begins in the data's order: what is skipped counts."""
        return self.config.train.sequences_before(self.skipped.batch(step))

    def wait_saved(self) -> None:
        with self._timed("checkpoint"):
            self.saved.wait()

    def evaluate(self, state: State, step: int) -> dict[str, float]:
        self.read_pending()
        train = self.config.train
        rows = self.rows[train.batch_size]
        with self._timed("evaluation") as timer:
            batches = self.validation_source.batches(self.config.eval.batches, self.rows.__getitem__)
            on_devices = (on_mesh(batch, rows, train.batch_size, train.accumulate) for batch in batches)
            result = evaluate(self.eval_step, state.params, on_devices)
        self.metrics.event("evaluation", step, seconds=timer(), **result, **self.accounts.so_far())
        self.console.say(
            f"evaluation at step {step}: loss {result['loss']:.4f}, accuracy {result['accuracy']:.1%} over {result['tokens']:,} tokens"
        )
        return result

    @contextlib.contextmanager
    def _timed(self, cause: str) -> Iterator[Callable[[], float]]:
        """Books what happens inside under `cause`, none of it in a step's time; what it yields tells the seconds."""
        begin = time.monotonic()
        with self.goodput.book(cause), self.watchdog.paused(cause):
            yield lambda: round(self.ready - begin, 3)
        self.ready = time.monotonic()


def on_mesh(batch: Batch, rows: np.ndarray, batch_size: int, accumulate: int) -> DeviceBatch:
    """This process's rows of a batch as global arrays."""
    return DeviceBatch(*(None if x is None else to_devices(x, rows, batch_size, accumulate) for x in batch))
