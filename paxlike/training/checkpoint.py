"""Checkpoints: asynchronous, sharded, restorable onto any mesh. The only module that uses Orbax.

A checkpoint is the directory `checkpoints/<step>`: `state` holds plain nested dicts of arrays
(`params/blocks/wq_DNH`), and `position` is a small JSON with the run's position in its data. Orbax
writes to a temporary directory and renames it once the checkpoint is complete.
"""

import errno
import functools
import logging
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from paxlike.config import CheckpointConfig, SaveError, UserError
from paxlike.data.location import in_bucket
from paxlike.parallel import job
from paxlike.training.checksums import delete_checksums, find_corruption, write_checksums
from paxlike.training.state import State, from_plain, to_plain

RENAME_SECONDS = 120
"""Timeout for process 0 to rename an unreadable checkpoint."""

# Orbax reports a failed save three times. The caller gets the error and explains it; the other two
# reports are dropped: a traceback logged from Orbax's own thread, and an "Event loop is closed"
# error from every further write of that save.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def _ignore_closed_loops(unraisable, show=sys.unraisablehook) -> None:
    if not (
        unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"
    ):
        show(unraisable)


sys.unraisablehook = _ignore_closed_loops


class Checkpoints:
    """The checkpoints of one run. Leaving the `with` block waits for a save in progress."""

    def __init__(self, folder: Path, config: CheckpointConfig):
        self.folder = folder
        keep = [policies.LatestN(config.keep)]
        if config.keep_every:
            keep.append(policies.EveryNSteps(config.keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
            save_decision_policy=policies.FixedIntervalPolicy(1),
        )
        try:
            self._manager = ocp.CheckpointManager(folder, options=options)
        except OSError as error:
            raise UserError(
                f"the checkpoint directory {folder} cannot be used: {error}."
            ) from error
        self._without_checksums: int | None = None
        self._checksum_thread: threading.Thread | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is None:
            self.wait()
        self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps of the existing checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())

    def save(self, state: State, step: int, position: dict) -> None:
        """Starts a save, and returns once the arrays are copied off the devices.

        Raises UserError if this save or the previous one fails. Earlier checkpoints are unaffected.
        """
        plain = to_plain(state)
        self._check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(plain)))
        if step in self.steps():
            return
        self.wait()
        delete_checksums(self.folder, step)
        state = ocp.args.StandardSave(
            plain, save_args=jax.tree_util.tree_map_with_path(_storage, plain)
        )
        arguments = ocp.args.Composite(state=state, position=ocp.args.JsonSave(position))
        self._explain_errors(lambda: self._manager.save(step, args=arguments))
        self._without_checksums = step

    def check(self) -> None:
        """Raises UserError if the save in progress has failed. Does not wait.

        Once the save is complete, starts computing its checksums.
        """
        self._explain_errors(self._manager.check_for_errors)
        if self._without_checksums is not None and not self._manager.is_saving_in_progress():
            self._checksum_thread = threading.Thread(
                target=write_checksums,
                args=(self.folder, self._without_checksums),
                name="checksums",
            )
            self._without_checksums = None
            self._checksum_thread.start()

    def wait(self) -> None:
        """Waits until the save in progress and its checksums are on disk.

        Raises UserError if the save failed.
        """
        self._explain_errors(
            lambda: (self._manager.wait_until_finished(), self._manager.check_for_errors())
        )
        self.check()
        if self._checksum_thread:
            self._checksum_thread.join()
            self._checksum_thread = None

    def restore_newest(
        self, like: State, before: int | None = None
    ) -> tuple[State, dict, list[str]] | None:
        """Returns (state, position, notes) of the newest readable checkpoint; None if none exists.

        like: shapes, dtypes and shardings (`abstract_state`). before: the largest step allowed. A
        corrupted or unreadable checkpoint is renamed to `<step>.unreadable`, a note is added, and
        the previous checkpoint is tried. Raises UserError if no checkpoint can be read.
        """
        notes: list[str] = []
        for step in reversed([step for step in self.steps() if before is None or step <= before]):
            try:
                if corruption := find_corruption(self.folder, step):
                    raise ValueError(corruption)
                arguments = ocp.args.Composite(
                    state=ocp.args.StandardRestore(to_plain(like)), position=ocp.args.JsonRestore()
                )
                found = self._manager.restore(step, args=arguments)
                return from_plain(found["state"], like), found["position"], notes
            except (
                Exception
            ) as error:  # Orbax and TensorStore raise many types for a corrupted file
                reason = _reason(error)
                rename = functools.partial(self._rename_unreadable, step)
                name = job.first(f"renaming checkpoint {step}", rename, RENAME_SECONDS)
                notes.append(f"checkpoint {step} cannot be read ({reason}); renamed to {name}.")
                self._manager.reload()
        if notes:
            raise UserError(
                f"no checkpoint in {self.folder} can be read. {' '.join(notes)} Train again with "
                "another --run-dir."
            )
        return None

    def delete_after(self, step: int) -> None:
        """Deletes the checkpoints of steps after `step`."""
        self.wait()
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def _rename_unreadable(self, step: int) -> str:
        return _rename_unreadable(self.folder / str(step)).name

    def _check_space(self, needed: int) -> None:
        if in_bucket(self.folder):
            return
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                self._disk_full(f"a checkpoint needs {needed:,} bytes, and {free:,} are free")
            )

    def _disk_full(self, detail: str) -> str:
        return (
            f"the disk of {self.folder} is full: {detail}. The earlier checkpoints "
            f"{self.steps()} are complete. Free some space and run the same command again to "
            "resume from the newest."
        )

    def _explain_errors(self, action: Callable[[], object]) -> None:
        """Runs `action`. Raises SaveError with a remedy if the disk is full."""
        try:
            action()
        except Exception as error:
            text = str(error)
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
                words in text
                for words in (
                    "No space left",
                    "ENOSPC",
                    "RESOURCE_EXHAUSTED",
                    "File too large",
                    "quota exceeded",
                )
            ):
                raise SaveError(
                    self._disk_full(text.strip().splitlines()[0].rpartition(": ")[2])
                ) from error
            raise


def _storage(path: tuple, _leaf: object) -> ocp.SaveArgs:
    """Stores arrays of the blocks with one chunk per layer, so that a layer can be read alone."""
    stacked = "/blocks" in jax.tree_util.keystr(path, simple=True, separator="/")
    return ocp.SaveArgs(shard_axes=(0,) if stacked else ())


def write_checkpoint(folder: Path, plain: dict, step: int, position: dict) -> None:
    """Writes a checkpoint of full (unsharded) arrays into `folder`.

    plain: as returned by `to_plain`, or with "params" alone.
    """
    arguments = ocp.args.Composite(
        state=ocp.args.StandardSave(
            plain, save_args=jax.tree_util.tree_map_with_path(_storage, plain)
        ),
        position=ocp.args.JsonSave(position),
    )
    with ocp.CheckpointManager(folder) as manager:
        manager.save(step, args=arguments)
        manager.wait_until_finished()
        manager.check_for_errors()
    write_checksums(folder, step)


def write_arrays(folder: Path, plain: dict) -> None:
    """Writes nested dicts of arrays, sharded, into a new directory that is complete or absent."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(plain))


def read_arrays(folder: Path, like: dict) -> dict:
    """The arrays of `write_arrays` in the shapes and shardings of `like`. Raises UserError."""
    arguments = ocp.args.PyTreeRestore(
        like, restore_args=ocp.checkpoint_utils.construct_restore_args(like)
    )
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(folder, args=arguments)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{folder} cannot be read ({_reason(error)}). Restore it.") from error


def checkpoint_step(folder: Path, step: int | None) -> int:
    """Returns `step`, or the newest checkpoint's step if None.

    Raises UserError if there is no such checkpoint.
    """
    complete = ocp.utils.is_checkpoint_finalized
    steps = sorted(
        int(path.name) for path in folder.glob("*") if path.name.isdigit() and complete(path)
    )
    if not steps:
        raise UserError(f"there is no checkpoint in {folder}. Train the run first.")
    if step is not None and step not in steps:
        raise UserError(f"there is no checkpoint {step} in {folder}. Choose a step among {steps}.")
    return steps[-1] if step is None else step


def restore_params(folder: Path, like: dict, step: int | None = None) -> tuple[dict, int]:
    """Returns (parameters, step) of the newest checkpoint in `folder`, or of the one at `step`.

    like: the parameters' shapes, dtypes and shardings. The optimizer's state is not read. Raises
    UserError if there is no such checkpoint or it cannot be read.
    """
    step = checkpoint_step(folder, step)
    target = {"params": like}
    arguments = ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            restored = checkpointer.restore(folder / str(step) / "state", args=arguments)
            return restored["params"], step
    except (ValueError, OSError, KeyError) as error:
        others = sorted(
            int(path.name)
            for path in folder.glob("*")
            if path.name.isdigit() and path.name != str(step)
        )
        raise UserError(
            f"checkpoint {step} in {folder} cannot be read ({_reason(error)}). Try --step with one "
            f"of {others}."
        ) from error


def _reason(error: Exception) -> str:
    """Returns the first line of the error's text, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _rename_unreadable(folder: Path) -> Path:
    target = folder.with_name(f"{folder.name}.unreadable")
    number = 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}.unreadable-{number}")
    folder.rename(target)
    return target
