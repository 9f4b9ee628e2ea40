"""The run directory: its files, its lock, and which config changes a resumed run allows.

config.json      the resolved config
init.json        where the first parameters came from, of a run with `init.source`
data.json        the token store's path (or seqio:NAME) and fingerprint
tokenizer/       a copy of the store's tokenizer and chat template, so that a run can generate
                 without its data
metrics.jsonl    one line per step and one per event (start, compile, evaluation, checkpoint, stop)
tensorboard/     event files
checkpoints/     see `checkpoint.py`
seals/           checksums of the checkpoints' files, see `checksums.py`
skipped.json     skipped batches, see `guard.py`
stacks/          stack traces of processes that the watchdog ended
profile/         traces of the profiler window
wandb.id         the ID of the Weights & Biases run (its local files are in wandb/)
"""

import fcntl
import json
import math
import os
from pathlib import Path

from paxlike.config import Config, UserError, differences, from_json, to_json
from paxlike.data.location import in_bucket
from paxlike.data.source import Source, check_unchanged
from paxlike.data.store import TEMPLATE_FILE
from paxlike.files import write_file
from paxlike.optim.schedules import make_schedule

MAY_CHANGE = (
    "train.steps:",
    "train.accumulate:",
    "model.remat:",
    "model.attention:",
    "mesh.",
    "precision.compute:",
    "precision.gradients:",
    "checkpoint.",
    "eval.",
    "log.",
    "profile.",
    "guard.rewinds:",
    "guard.back:",
    "guard.skip:",
    "guard.window:",
    "guard.deviations:",
    "guard.patience:",
    "watchdog.",
    "data.store:",
    "data.module:",
)
"""Fields and sections that may change when a run resumes: except for rounding, they do not change
which updates follow from which batches."""


def next_run_directory(root: Path, name: str) -> Path:
    """Returns `root/name-N` with the smallest N >= 1 that does not exist."""
    number = 1
    while (root / f"{name}-{number}").exists():
        number += 1
    return root / f"{name}-{number}"


class RunDirectory:
    """An open run directory, locked against other processes on the same machine until `close`.

    An existing run is not changed before `accept`. A run directory in a bucket cannot be locked.
    """

    def __init__(self, folder: Path, config: Config, store: Source):
        """Creates the directory, or opens an existing one.

        Raises UserError if it belongs to another config or other data, is past the config's last
        step, or is in use.
        """
        self.folder, self._config, self._store = folder, config, store
        self.changes: list[str] = []
        """What this start changes in the run's config: `field: old -> new`."""
        self.warnings: list[str] = []
        self._accepted = False
        if folder.is_file():
            raise UserError(f"{folder} is a file, not a directory. Give another --run-dir.")
        known = read_config(folder) if folder.exists() and any(folder.iterdir()) else None
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder)
        try:
            self._enter(known, config, store)
        except BaseException:
            self.close()
            raise

    def _enter(self, known: Config | None, config: Config, store: Source) -> None:
        folder = self.folder
        if known is None:
            (folder / "tokenizer").mkdir(exist_ok=True)
            store.tokenizer.save(folder / "tokenizer")
            if store.chat_template:
                write_text(folder / "tokenizer" / TEMPLATE_FILE, store.chat_template)
            self._record()  # other processes look for it
            self._accepted = True
            return
        if newest_step(folder) is not None and not (folder / "data.json").exists():
            raise UserError(
                f"the run {folder} was converted from another format: it has parameters, but no "
                "optimizer state and no data. Start a new run from it: paxlike train CONFIG "
                f"--init.from {folder} --init.config --run-dir NEW_DIRECTORY"
            )
        self.changes = _checked_changes(folder, known, config)
        check_unchanged(store, read_data(folder)["fingerprint"])
        step = newest_step(folder) or 0
        if step > config.train.steps:
            raise UserError(
                f"the run {folder} is already at step {step}, past train.steps "
                f"{config.train.steps}; raise --train.steps."
            )
        if jump := _rate_jump(known, config, step):
            self.warnings.append(jump)

    def accept(self) -> None:
        """Records the config and where the data is, once nothing can refuse this start."""
        if not self._accepted:
            self._record()
        self._accepted = True

    def _record(self) -> None:
        data = {"store": self._store.location, "fingerprint": self._store.fingerprint}
        write_text(self.folder / "data.json", json.dumps(data) + "\n")
        write_text(self.folder / "config.json", to_json(self._config))

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)


def check_visible(folder: Path) -> None:
    """Raises UserError if this process does not see the run directory that process 0 opened."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"the run directory {folder}, opened by process 0, does not exist here; --run-dir must "
            "be on storage that all hosts share."
        )


def read_config(folder: Path) -> Config:
    """Returns the config of a run directory. Raises UserError if it is not a run directory."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a run directory: it has no config.json. Give another --run-dir."
        )
    try:
        return from_json(path.read_text())
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. Restore it, or give another --run-dir."
        ) from error


def read_data(folder: Path) -> dict:
    """Returns {"store": path, "fingerprint": sha256} of the run's training data.

    Raises UserError if data.json is missing or cannot be read.
    """
    path = folder / "data.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. Restore it, or give another --run-dir."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a small file atomically. Writes to a bucket are always atomic."""
    if in_bucket(path):
        path.write_text(text)
    else:
        write_file(path, text)


def _checked_changes(folder: Path, known: Config, config: Config) -> list[str]:
    changes = differences(known, config)
    refused = [change for change in changes if not change.startswith(MAY_CHANGE)]
    if refused:
        raise UserError(
            f"the run directory {folder} belongs to another config: {'; '.join(refused)}. "
            "Give another --run-dir, or set these fields to the run's values."
        )
    return changes


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint; None without one."""
    checkpoints = folder / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=None)


def _rate_jump(known: Config, config: Config, step: int) -> str | None:
    """A warning if other `train.steps` change the learning rate of the next update."""
    if not 0 < step < config.train.steps:
        return None
    before, after = (
        float(make_schedule(one.optim, one.train.steps)(step)) for one in (known, config)
    )
    if math.isclose(before, after, rel_tol=0.01):
        return None
    return (
        f"with train.steps {config.train.steps} instead of {known.train.steps}, the learning rate "
        f"of step {step + 1} is {after:.3g} instead of {before:.3g}, because optim.schedule "
        f"{config.optim.schedule} depends on train.steps. Alternatives: set the final train.steps "
        "when a run begins, or use optim.schedule palm or constant, which do not depend on it."
    )


def _lock(folder: Path) -> int | None:
    """Returns the file descriptor of the locked `.lock` file; None in a bucket."""
    if in_bucket(folder):
        return None
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise UserError(
            f"another process is training in {folder}; wait for it, or give another --run-dir."
        ) from None
    return lock
