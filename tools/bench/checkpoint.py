"""Checkpoints: how long saving blocks a step, and MB/s compared with plain files of the same size.

    python -m tools.bench.checkpoint [--size test] [--json FILE]

Stall: the seconds until `save` returns. The run then continues while threads write. On a CPU those
threads share the cores with the steps, so the slowdown of the following steps is reported as well.
A plain write passes NumPy's buffers to the file system, one file per array; a plain read reads them
into fresh memory. Neither waits for the disk; checkpoints do not either.
"""

import hashlib
import itertools
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from paxlike.config import CheckpointConfig, Config
from paxlike.training.checkpoint import Checkpoints
from paxlike.training.state import State, abstract_state, make_state
from paxlike.training.step import Program, abstract_batch
from tools.bench import reference
from tools.bench.measure import Row, Timings, command_line, interleave


def rows(size: str) -> list[Row]:
    config = reference.config(size)
    with jax.set_mesh(reference.one_device()), tempfile.TemporaryDirectory() as folder:
        program = Program.of(config, reference.numerics(config))
        state = make_state(config, program.numerics, program.optimizer)
        like = abstract_state(config, program.numerics, program.optimizer)
        with Checkpoints(Path(folder) / "checkpoints", CheckpointConfig(keep=1)) as checkpoints:
            turns = 5 if size == "full" else 1
            throughput = _throughput(checkpoints, state, like, Path(folder), turns)
            overlap = _overlap_with_steps(checkpoints, state, config, program, min(turns, 3))
            return [*throughput, *overlap]


def _throughput(
    checkpoints: Checkpoints, state: State, like: State, folder: Path, turns: int
) -> list[Row]:
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    megabytes = sum(array.nbytes for array in arrays) / 1e6
    numbers, stalls = itertools.count(1), Timings()

    def save() -> None:
        begin = time.perf_counter()
        checkpoints.save(state, next(numbers), {"step": 0})
        stalls.wall_times.append(time.perf_counter() - begin)
        checkpoints.wait()

    def restore() -> None:
        jax.block_until_ready(checkpoints.restore_newest(like)[0])

    def write_plain() -> None:
        for number, array in enumerate(arrays):
            array.tofile(folder / f"{number}.bin")

    def read_plain() -> None:
        for number, array in enumerate(arrays):
            np.fromfile(folder / f"{number}.bin", array.dtype)

    def hash_plain() -> None:
        for array in arrays:
            hashlib.sha256(array.data if array.ndim else array.tobytes()).hexdigest()

    workloads = {
        "save": save,
        "plain write": write_plain,
        "restore": restore,
        "plain read": read_plain,
        "sha256": hash_plain,
    }
    timings = interleave(workloads, turns)
    stall, waited = stalls.wall, timings["save"].wall
    rate = {name: megabytes / timing.wall for name, timing in timings.items()}
    return [
        Row(
            "save returns after",
            stall,
            "s",
            "waiting for the save",
            waited,
            "under 10 %",
            stall < 0.1 * waited,
            f"{megabytes:,.0f} MB; {stalls.spread}",
        ),
        Row(
            "save",
            rate["save"],
            "MB/s",
            "plain files, written",
            rate["plain write"],
            note="written, then read and hashed for the checksums",
        ),
        Row(
            "restore",
            rate["restore"],
            "MB/s",
            "plain files, read",
            rate["plain read"],
            note="hashed, read, placed on the device",
        ),
        Row(
            "sha256 alone",
            rate["sha256"],
            "MB/s",
            note="one core; the cost of the checksums when saving and when restoring",
        ),
    ]


STEPS = 2
"""Steps that run during a save; enough to outlast it."""


def _overlap_with_steps(
    checkpoints: Checkpoints, state: State, config: Config, program: Program, turns: int
) -> list[Row]:
    """Total cost of a save during which steps run: on a CPU its threads share the steps' cores."""
    shapes = abstract_batch(config, config.train.batch_size, segments=False)
    random = np.random.default_rng(0)
    batch = jax.tree.map(
        lambda leaf: jax.device_put(
            random.integers(0, config.model.vocab_size, leaf.shape, np.int32), leaf.sharding
        ),
        shapes,
    )
    current, numbers = [state], itertools.count(10**6)

    def steps() -> None:
        for _ in range(STEPS):
            current[0], metrics = program.train_step(current[0], batch)
        jax.block_until_ready((current[0], metrics))

    def steps_and_save() -> None:
        checkpoints.save(current[0], next(numbers), {"step": 0})
        steps()
        checkpoints.wait()

    def save() -> None:
        checkpoints.save(current[0], next(numbers), {"step": 0})
        checkpoints.wait()

    timings = interleave({"steps": steps, "both": steps_and_save, "save": save}, turns)
    steps_cpu = timings["steps"].cpu
    return [
        Row(
            f"CPU time that a save adds to {STEPS} steps",
            timings["both"].cpu - steps_cpu,
            "s",
            "a save alone",
            timings["save"].cpu,
            note=f"on the steps' cores; {STEPS} steps alone take {steps_cpu:.3g} s",
        )
    ]


if __name__ == "__main__":
    command_line("Checkpoints", __doc__, rows)
