"""The sha256 of every file of a checkpoint, so that one damaged later is known before it is read.

The formats inside notice a file that is cut short, and some flipped bits. The seal, `seals/<step>/` in the run folder, notices any. All
processes of a job share the reading: process k of n writes `<k>-of-<n>.json`, {file: sha256}. Buckets check
their objects themselves and are not sealed.
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
from paxlike.train.run import write

VERIFY_SECONDS = 3600
"""How long processes wait for each other to read their share of a checkpoint."""
COMMIT_SECONDS = 60
"""How long a process waits to see a checkpoint that is whole for the first one."""

HASHERS = 8
"""Files that are hashed at once."""


def seal(checkpoints: Path, step: int) -> None:
    """Writes this process's share of the seal of a whole checkpoint. Nothing where the checkpoint is gone again."""
    if in_bucket(checkpoints):
        return
    folder, deadline = checkpoints / str(step), time.monotonic() + COMMIT_SECONDS
    while not folder.is_dir():
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    k, n = jax.process_index(), jax.process_count()
    sums = _sums(folder, _share(_names(folder), k, n))
    into = _seal_of(checkpoints, step)
    into.mkdir(parents=True, exist_ok=True)
    write(into / f"{k}-of-{n}.json", json.dumps(sums))
    if k == 0:
        for other in into.parent.iterdir():
            if not (checkpoints / other.name).exists():
                shutil.rmtree(other, ignore_errors=True)


def unseal(checkpoints: Path, step: int) -> None:
    """Forgets the seal of an earlier checkpoint of this step, before it is written again."""
    if jax.process_index() == 0 and not in_bucket(checkpoints):
        shutil.rmtree(_seal_of(checkpoints, step), ignore_errors=True)


def damage(checkpoints: Path, step: int) -> str | None:
    """What is wrong with a checkpoint by its seal, the same answer in every process; None where nothing is, or it has no seal."""
    return next(filter(None, job.exchange(f"checkpoint {step}", _damage_here(checkpoints, step), VERIFY_SECONDS)), None)


def _damage_here(checkpoints: Path, step: int) -> str | None:
    folder, sums = checkpoints / str(step), {}
    for path in sorted(_seal_of(checkpoints, step).glob("*-of-*.json")):
        try:
            sums |= json.loads(path.read_text())
        except ValueError:
            return f"its seal {path.name} is damaged"
    mine = _share(sorted(sums), jax.process_index(), jax.process_count())
    for name in mine:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"its seal names a file outside of it: {name}"
        if not (folder / name).is_file():
            return f"{name} is missing"
    for name, found in _sums(folder, mine).items():
        if found != sums[name]:
            return f"{name} was changed or cut short: its sha256 is another"
    return None


def _seal_of(checkpoints: Path, step: int) -> Path:
    return checkpoints.parent / "seals" / str(step)


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _share(names: list[str], k: int, n: int) -> list[str]:
    """Process k's part: of the arrays' files (in folders `d`, never changed once written) one in n; the rest is process 0's."""
    arrays = [name for name in names if Path(name).parent.name == "d"]
    return arrays[k::n] + ([name for name in names if Path(name).parent.name != "d"] if k == 0 else [])


def _sums(folder: Path, names: list[str]) -> dict[str, str]:
    """name -> sha256, several files at once: one core hashes more slowly than memory and good disks read."""
    with ThreadPoolExecutor(HASHERS) as pool:
        return dict(zip(names, pool.map(lambda name: _sum(folder / name), names), strict=True))


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
