"""Directories on a mounted disk or in a bucket (gs://…, s3://…).

A directory on a disk is a `pathlib.Path`, one in a bucket an `epath.Path`, which has the same
methods and uses fsspec (gcsfs, s3fs). A file in a bucket is complete or absent, and cannot be
appended to, memory-mapped or locked: code that needs this works on a local copy.
"""

import importlib.util
import os
from pathlib import Path

from etils import epath
from fsspec.config import conf

from paxlike.config import UserError
from paxlike.parallel.cache_dir import cache_root

BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}
"""Scheme -> the package that fsspec requires for it."""


def located(name: str | Path) -> Path:
    """The directory of that name, absolute. Raises UserError for a bucket that cannot be used."""
    # pathlib.Path removes one of the two slashes of a bucket's name.
    scheme, colon, rest = str(name).partition(":/")
    if not colon or not scheme.isalnum():
        return Path(name).absolute()
    if scheme not in BUCKETS:
        raise UserError(
            f"{name}: {scheme}:// is not supported; use a local path, gs://… or s3://…."
        )
    if importlib.util.find_spec(BUCKETS[scheme]) is None:
        raise UserError(
            f"{name}: {scheme}:// requires the package {BUCKETS[scheme]}: "
            f"`pip install {BUCKETS[scheme]}`."
        )
    # Other processes write to the bucket too, so a cached listing would be stale.
    conf.setdefault(scheme, {})["use_listings_cache"] = False
    return epath.Path(f"{scheme}://{rest.lstrip('/')}")


def in_bucket(folder: Path) -> bool:
    return not isinstance(folder, Path)


def fetched(folder: Path, sizes: dict[str, int], name: str) -> Path:
    """Copies the files in `folder` to the cache, under `name`. `sizes` maps file names to bytes.

    Files that are already cached with that size are kept. Several processes may call this at once.
    Raises UserError if a file is missing, or its name is a path out of the directory.
    """
    copy = cache_root() / "stores" / name
    copy.mkdir(parents=True, exist_ok=True)
    for file, size in sizes.items():
        if Path(file).name != file:
            raise UserError(
                f"the manifest of {folder} names a file {file!r} that is not in it. Prepare the "
                "store again."
            )
        target = copy / file
        if not target.is_file() or target.stat().st_size != size:
            temporary = copy / f".{file}.{os.getpid()}"
            try:
                with (folder / file).open("rb") as source, temporary.open("wb") as sink:
                    while block := source.read(2**24):
                        sink.write(block)
            except FileNotFoundError as error:
                raise UserError(
                    f"{folder / file} is missing. Copy the store there again."
                ) from error
            temporary.rename(target)
    return copy
