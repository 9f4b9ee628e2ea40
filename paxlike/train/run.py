"""The run folder: what is in it, who may use it, and whether a config may go on in it.

config.json      the resolved config
data.json        the token store's path (or seqio:NAME) and fingerprint
tokenizer/       a copy of the store's tokenizer, so that a run can be sampled without its data
metrics.jsonl    a line a step, and a line an event (start, compile, evaluation, checkpoint, stop)
tensorboard/     event files
checkpoints/     see `checkpoint.py`
seals/           what the checkpoints' files must be, see `seal.py`
skipped.json     batches that are not learnt from, see `guard.py`
stacks/          where processes stood that a watchdog ended
profile/         traces of the profiler window
wandb.id         which run of Weights & Biases it is, with its local files in wandb/
"""

import fcntl
import json
import os
from pathlib import Path

from paxlike.config import Config, UserError, differences, from_json, to_json
from paxlike.data.location import in_bucket
from paxlike.data.source import Source, check_unchanged
from paxlike.files import write_file

MAY_CHANGE = (
    "train.steps:", "train.accumulate:", "model.remat:", "model.attention:", "mesh.", "precision.compute:", "precision.gradients:",
    "checkpoint.", "eval.", "log.", "profile.", "guard.rewinds:", "guard.back:", "guard.skip:", "guard.window:",
    "guard.deviations:", "guard.patience:", "watchdog.", "data.store:", "data.module:",
)  # fmt: skip
"""What may differ from the run's config when it goes on: none of it changes what is learnt from which batch, beyond rounding."""


def next_free(root: Path, name: str) -> Path:
    """`root/name-1`, or with the next number that no folder has."""
    number = 1
    while (root / f"{name}-{number}").exists():
        number += 1
    return root / f"{name}-{number}"


class Run:
    """An open run folder, locked against a second process of the same machine until `close`; a bucket cannot be locked."""

    def __init__(self, folder: Path, config: Config, store: Source):
        """Makes the folder, or checks that it belongs to this config and data. Raises UserError otherwise."""
        self.folder = folder
        self.changes: list[str] = []
        """`field: old -> new` of what this start changes in the run's config."""
        if folder.is_file():
            raise UserError(f"{folder} is a file: it is left alone. Give another --run-dir.")
        known = read_config(folder) if folder.exists() and any(folder.iterdir()) else None
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder)
        try:
            self._enter(known, config, store)
        except BaseException:
            self.close()
            raise

    def _enter(self, known: Config | None, config: Config, store: Source) -> None:
        folder = self.folder
        if known is None:
            write(folder / "data.json", json.dumps({"store": store.location, "fingerprint": store.fingerprint}) + "\n")
            store.tokenizer.save(_made(folder / "tokenizer"))
        else:
            self.changes = _checked_changes(folder, known, config)
            check_unchanged(store, read_data(folder)["fingerprint"])
        write(folder / "config.json", to_json(config))

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)


def check_seen(folder: Path) -> None:
    """Raises UserError where this process does not see the run folder that the first one has opened."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"the run folder {folder} that process 0 opened is not seen here; --run-dir must be on storage that all hosts share."
        )


def read_config(folder: Path) -> Config:
    """The config of a run folder. Raises UserError where the folder is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.json. Give another --run-dir.")
    try:
        return from_json(path.read_text())
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Restore it, or give another --run-dir.") from error


def read_data(folder: Path) -> dict:
    """{"store": path, "fingerprint": sha256} of what the run is trained on. Raises UserError where it is not there."""
    try:
        return json.loads((folder / "data.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / 'data.json'} cannot be read: {error}. Restore it, or give another --run-dir."
        ) from error


def write(path: Path, text: str) -> None:
    """Writes a small file that is there whole or not at all, as a bucket's files are anyway."""
    if in_bucket(path):
        path.write_text(text)
    else:
        write_file(path, text)


def _checked_changes(folder: Path, known: Config, config: Config) -> list[str]:
    changes = differences(known, config)
    refused = [change for change in changes if not change.startswith(MAY_CHANGE)]
    if refused:
        raise UserError(
            f"the run folder {folder} belongs to another config: {'; '.join(refused)}. "
            "Give another --run-dir, or the run's own values."
        )
    return changes


def _locked(folder: Path) -> int | None:
    if in_bucket(folder):
        return None
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise UserError(f"another process is training in {folder}; wait for it, or give another --run-dir.") from None
    return lock


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
