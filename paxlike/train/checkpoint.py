"""Checkpoints: asynchronous, sharded, readable onto any mesh. The only file that knows Orbax.

A checkpoint is the folder `checkpoints/<step>`: `state` holds plain nested dicts of arrays (`params/blocks/wq_DNH`), `position` is a
small JSON: where the run stood in its data. Orbax writes into a temporary folder and renames it when it is whole.
"""

import errno
import logging
import shutil
import sys
import threading
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from paxlike.config import CheckpointConfig, SaveError, UserError
from paxlike.data.location import in_bucket
from paxlike.parallel import job
from paxlike.train.seal import damage, seal, unseal
from paxlike.train.state import State, from_plain, to_plain

ASIDE_SECONDS = 120
"""How long processes wait for the first one to rename a checkpoint."""

# A save that fails is told three times. The error comes back to the caller, who explains it; the other two are dropped: Orbax logs
# a traceback from its own thread, and every further write of that save finds the event loop of the first closed.
logging.getLogger("absl").setLevel(logging.CRITICAL)


def _without_closed_loops(unraisable, show=sys.unraisablehook) -> None:
    if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
        show(unraisable)


sys.unraisablehook = _without_closed_loops


class Checkpoints:
    """The checkpoints of one run. `close` (or leaving `with`) waits for what is still being written."""

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
            raise UserError(f"the checkpoint folder {folder} cannot be used: {error}.") from error
        self._unsealed: int | None = None
        self._sealing: threading.Thread | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is None:
            self.wait()
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: State, step: int, position: dict) -> None:
        """Starts writing; returns once the arrays are copied off the devices.

        Raises UserError where this save or the one before cannot be written; earlier checkpoints stay as they are.
        """
        plain = to_plain(state)
        self._check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(plain)))
        if step in self.steps():
            return
        self.wait()
        unseal(self.folder, step)
        state = ocp.args.StandardSave(plain, save_args=jax.tree_util.tree_map_with_path(_storage, plain))
        arguments = ocp.args.Composite(state=state, position=ocp.args.JsonSave(position))
        self._or_explain(lambda: self._manager.save(step, args=arguments))
        self._unsealed = step

    def check(self) -> None:
        """Raises UserError if the save under way has failed; does not wait. Once it is whole, starts to seal it."""
        self._or_explain(self._manager.check_for_errors)
        if self._unsealed is not None and not self._manager.is_saving_in_progress():
            self._sealing = threading.Thread(target=seal, args=(self.folder, self._unsealed), name="seal")
            self._unsealed = None
            self._sealing.start()

    def wait(self) -> None:
        """Returns when the save under way is whole on disk and sealed. Raises UserError if it failed."""
        self._or_explain(lambda: (self._manager.wait_until_finished(), self._manager.check_for_errors()))
        self.check()
        if self._sealing:
            self._sealing.join()
            self._sealing = None

    def restore_newest(self, like: State, before: int | None = None) -> tuple[State, dict, list[str]] | None:
        """(state, position, notes) of the newest checkpoint that can be read whole; None where there is none at all.

        `like` gives shapes, dtypes and shardings (`abstract_state`); `before`: the largest step wanted. A checkpoint that is not what
        was written, or cannot be read, is renamed to `<step>.unreadable`, with a note, and the one before it is tried. Raises
        UserError where none can be read.
        """
        notes = []
        for step in reversed([step for step in self.steps() if before is None or step <= before]):
            try:
                if found := damage(self.folder, step):
                    raise ValueError(found)
                arguments = ocp.args.Composite(
                    state=ocp.args.StandardRestore(to_plain(like)), position=ocp.args.JsonRestore()
                )
                found = self._manager.restore(step, args=arguments)
                return from_plain(found["state"], like), found["position"], notes
            except Exception as error:  # whatever a damaged file makes Orbax or TensorStore raise
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                aside = job.first(f"setting checkpoint {step} aside", lambda: self._set_aside(step), ASIDE_SECONDS)  # noqa: B023
                notes.append(f"checkpoint {step} cannot be read ({reason}); set aside as {aside}.")
                self._manager.reload()
        if notes:
            raise UserError(
                f"no checkpoint in {self.folder} can be read. {' '.join(notes)} Train again with another --run-dir."
            )
        return None

    def delete_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps: the run goes another way from this one on."""
        self.wait()
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def _set_aside(self, step: int) -> str:
        return _rename_aside(self.folder / str(step)).name

    def _check_space(self, needed: int) -> None:
        if in_bucket(self.folder):
            return
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(self._disk_full(f"a checkpoint needs {needed:,} bytes, {free:,} are free"))

    def _disk_full(self, detail: str) -> str:
        return (
            f"the disk under {self.folder} is full: {detail}. Earlier checkpoints {self.steps()} are whole; "
            "make room and run the same command to go on from the newest."
        )

    def _or_explain(self, action) -> None:
        try:
            action()
        except Exception as error:
            text = str(error)
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
                words in text
                for words in ("No space left", "ENOSPC", "RESOURCE_EXHAUSTED", "File too large", "quota exceeded")
            ):
                raise SaveError(self._disk_full(text.strip().splitlines()[0].rpartition(": ")[2])) from error
            raise


def _storage(path: tuple, _leaf: object) -> ocp.SaveArgs:
    """How an array is stored: those of the blocks a layer a chunk, so that a layer can be read without the others."""
    of_blocks = "/blocks/" in jax.tree_util.keystr(path, simple=True, separator="/")
    return ocp.SaveArgs(shard_axes=(0,) if of_blocks else ())


def write_checkpoint(folder: Path, plain: dict, step: int, position: dict) -> None:
    """Writes a checkpoint from whole arrays into `folder`; `plain` as `to_plain` gives it, or with "params" alone."""
    arguments = ocp.args.Composite(
        state=ocp.args.StandardSave(plain, save_args=jax.tree_util.tree_map_with_path(_storage, plain)),
        position=ocp.args.JsonSave(position),
    )
    with ocp.CheckpointManager(folder) as manager:
        manager.save(step, args=arguments)
        manager.wait_until_finished()
        manager.check_for_errors()
    seal(folder, step)


def chosen_step(folder: Path, step: int | None) -> int:
    """The newest checkpoint's step, or `step`. Raises UserError where there is no such checkpoint."""
    whole = ocp.utils.is_checkpoint_finalized
    steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit() and whole(path))
    if not steps or (step is not None and step not in steps):
        wanted = "no checkpoint" if step is None else f"no checkpoint {step}"
        raise UserError(f"there is {wanted} in {folder}; there are {steps}. Train the run first.")
    return steps[-1] if step is None else step


def restore_params(folder: Path, like: dict, step: int | None = None) -> tuple[dict, int]:
    """(parameters, step) of the newest checkpoint in `folder`, or of the named one; the optimizer's state is not read.

    `like` gives the parameters' shapes, dtypes and shardings. Raises UserError where there is no such checkpoint.
    """
    step = chosen_step(folder, step)
    target = {"params": like}
    arguments = ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
    )
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(folder / str(step) / "state", args=arguments)["params"], step
    except (ValueError, OSError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        others = sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit() and path.name != str(step))
        raise UserError(
            f"checkpoint {step} in {folder} cannot be read ({reason}). Try --step with one of {others}."
        ) from error


def _rename_aside(folder: Path) -> Path:
    aside = folder.with_name(f"{folder.name}.unreadable")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.unreadable-{number}")
    folder.rename(aside)
    return aside
