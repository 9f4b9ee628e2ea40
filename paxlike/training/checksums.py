"""The sha256 of every file of a checkpoint, so that corruption is detected before it is read.

The file formats themselves detect truncation and some flipped bits. The checksums, stored in
`seals/<step>/` in the run directory, detect any change. The processes of a job share the work:
process k of n writes `<k>-of-<n>.json`, {file: sha256}. Buckets verify their own objects, so
checkpoints in buckets have no checksums here.
"""

import hashlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from paxlike.data.location import in_bucket
from paxlike.parallel import job
from paxlike.training.run_directory import write_text

VERIFY_SECONDS = 3600
"""Timeout for every process to verify its share of a checkpoint."""
COMMIT_SECONDS = 60
"""Timeout for this process to see a checkpoint that process 0 has completed."""

HASHERS = 8
"""Number of files that are hashed in parallel."""


def write_checksums(checkpoints: Path, step: int) -> None:
    """Writes this process's share of the checksums of a complete checkpoint.

    Does nothing if the checkpoint has already been deleted.
    """
    if in_bucket(checkpoints):
        return
    folder, deadline = checkpoints / str(step), time.monotonic() + COMMIT_SECONDS
    while not folder.is_dir():
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    k, n = jax.process_index(), jax.process_count()
    sums = _sums(folder, _share(_names(folder), k, n))
    target = _checksum_folder(checkpoints, step)
    target.mkdir(parents=True, exist_ok=True)
    write_text(target / f"{k}-of-{n}.json", json.dumps(sums))
    if k == 0:
        for other in target.parent.iterdir():
            if not (checkpoints / other.name).exists():
                shutil.rmtree(other, ignore_errors=True)


def delete_checksums(checkpoints: Path, step: int) -> None:
    """Deletes the checksums of an earlier checkpoint of this step, before it is saved again."""
    if jax.process_index() == 0 and not in_bucket(checkpoints):
        shutil.rmtree(_checksum_folder(checkpoints, step), ignore_errors=True)


def find_corruption(checkpoints: Path, step: int) -> str | None:
    """Verifies a checkpoint. Returns what is wrong with it, the same text in every process.

    Returns None if its files match their checksums, or if it has none.
    """
    own = _find_corruption_in_share(checkpoints, step)
    found = job.exchange(f"checkpoint {step}", own, VERIFY_SECONDS)
    return next(filter(None, found), None)


def _find_corruption_in_share(checkpoints: Path, step: int) -> str | None:
    folder = checkpoints / str(step)
    sums: dict[str, str] = {}
    for path in sorted(_checksum_folder(checkpoints, step).glob("*-of-*.json")):
        try:
            sums |= json.loads(path.read_text())
        except ValueError:
            return f"its checksum file {path.name} is corrupted"
    own_names = _share(sorted(sums), jax.process_index(), jax.process_count())
    for name in own_names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"its checksums name a file outside the checkpoint: {name}"
        if not (folder / name).is_file():
            return f"{name} is missing"
    for name, found in _sums(folder, own_names).items():
        if found != sums[name]:
            return f"{name} was changed or truncated: its sha256 does not match"
    return None


def _checksum_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints.parent / "seals" / str(step)


def _names(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def _share(names: list[str], k: int, n: int) -> list[str]:
    """Returns process k's share of the files.

    Array files (in directories `d`, never changed once written) are divided among the n processes.
    Process 0 also takes all other files.
    """
    arrays = [name for name in names if Path(name).parent.name == "d"]
    return arrays[k::n] + (
        [name for name in names if Path(name).parent.name != "d"] if k == 0 else []
    )


def _sums(folder: Path, names: list[str]) -> dict[str, str]:
    """Returns {name: sha256}. Hashes in parallel: fast disks read faster than one core hashes."""
    with ThreadPoolExecutor(HASHERS) as pool:
        return dict(zip(names, pool.map(lambda name: _sum(folder / name), names), strict=True))


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
