"""Checkpoints: how long a step stands still while one is saved, and MB/s beside plain files of the same bytes.

    python -m tools.bench.checkpoint [--size test] [--json FILE]

Stall: the seconds that `save` takes before it returns, after which the run goes on while threads write. On a CPU those threads take their
time from the same cores as the steps, so what the next steps are slower by is told as well. A plain write hands numpy's buffers to the file
system, one file for each array, and a plain read reads them into fresh memory; neither waits for the disk, nor do checkpoints.
"""

import hashlib
import itertools
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from paxlike.config import CheckpointConfig, Config
from paxlike.train.checkpoint import Checkpoints
from paxlike.train.state import State, abstract_state, make_state
from paxlike.train.step import Program, abstract_batch
from tools.bench import reference
from tools.bench.measure import Row, Taken, command, take_turns


def rows(size: str) -> list[Row]:
    config = reference.config(size)
    with jax.set_mesh(reference.one_device()), tempfile.TemporaryDirectory() as folder:
        program = Program.of(config, reference.numerics(config))
        state = make_state(config, program.numerics, program.optimizer)
        like = abstract_state(config, program.numerics, program.optimizer)
        with Checkpoints(Path(folder) / "checkpoints", CheckpointConfig(keep=1)) as saved:
            turns = 5 if size == "full" else 1
            found = _speeds(saved, state, like, Path(folder), turns)
            return [*found, *_beside_steps(saved, state, config, program, min(turns, 3))]


def _speeds(saved: Checkpoints, state: State, like: State, folder: Path, turns: int) -> list[Row]:
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    megabytes = sum(array.nbytes for array in arrays) / 1e6
    numbers, stalls = itertools.count(1), Taken()

    def save() -> None:
        begin = time.perf_counter()
        saved.save(state, next(numbers), {"step": 0})
        stalls.walls.append(time.perf_counter() - begin)
        saved.wait()

    def restore() -> None:
        jax.block_until_ready(saved.restore_newest(like)[0])

    def write_plain() -> None:
        for number, array in enumerate(arrays):
            array.tofile(folder / f"{number}.bin")

    def read_plain() -> None:
        for number, array in enumerate(arrays):
            np.fromfile(folder / f"{number}.bin", array.dtype)

    def hash_plain() -> None:
        for array in arrays:
            hashlib.sha256(array.data if array.ndim else array.tobytes()).hexdigest()

    works = {
        "save": save,
        "plain write": write_plain,
        "restore": restore,
        "plain read": read_plain,
        "sha256": hash_plain,
    }
    taken = take_turns(works, turns)
    stall, rate = stalls.wall, {name: megabytes / took.wall for name, took in taken.items()}
    return [
        Row("save returns after", stall, "s", "a save waited for", taken["save"].wall, "under 10 %", stall < 0.1 * taken["save"].wall,
            f"{megabytes:,.0f} MB; {stalls.spread}"),
        Row("save", rate["save"], "MB/s", "plain files, written", rate["plain write"], note="written, then read and hashed for the seal"),
        Row("restore", rate["restore"], "MB/s", "plain files, read", rate["plain read"], note="hashed, read, placed on the device"),
        Row("sha256 alone", rate["sha256"], "MB/s", note="one core: what the seal costs, in saving and in restoring"),
    ]  # fmt: skip


STEPS = 2
"""Steps that a save is under way beside, enough to outlast it."""


def _beside_steps(saved: Checkpoints, state: State, config: Config, program: Program, turns: int) -> list[Row]:
    """What a save costs in all, when steps go on meanwhile: on a CPU its threads work on the steps' cores."""
    shapes = abstract_batch(config, config.train.batch_size, segments=False)
    random = np.random.default_rng(0)
    batch = jax.tree.map(
        lambda leaf: jax.device_put(random.integers(0, config.model.vocab_size, leaf.shape, np.int32), leaf.sharding),
        shapes,
    )
    held, numbers = [state], itertools.count(10**6)

    def steps() -> None:
        for _ in range(STEPS):
            held[0], told = program.train_step(held[0], batch)
        jax.block_until_ready((held[0], told))

    def steps_and_save() -> None:
        saved.save(held[0], next(numbers), {"step": 0})
        steps()
        saved.wait()

    def save() -> None:
        saved.save(held[0], next(numbers), {"step": 0})
        saved.wait()

    taken = take_turns({"steps": steps, "both": steps_and_save, "save": save}, turns)
    more = taken["both"].cpu - taken["steps"].cpu
    note = f"on the steps' own cores; {STEPS} steps alone take {taken['steps'].cpu:.3g} s"
    return [Row(f"a save beside {STEPS} steps, CPU time", more, "s", "a save alone", taken["save"].cpu, note=note)]


if __name__ == "__main__":
    command("Checkpoints", __doc__, rows)
