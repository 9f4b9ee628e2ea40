"""Where folders are: on a disk that is mounted here, or in a bucket (gs://…, s3://…).

Disks are `pathlib.Path`, buckets `epath.Path`, which has the same methods and goes through fsspec (gcsfs, s3fs). In a bucket a file is
there whole or not at all, and cannot be appended to, mapped into memory or locked: what needs that works on a local copy.
"""

import importlib.util
import os
from pathlib import Path

from etils import epath
from fsspec.config import conf

from paxlike.config import UserError
from paxlike.parallel.cache import cache_root

BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}
"""Scheme -> the package that fsspec needs for it."""


def located(name: str | Path) -> Path:
    """The folder of that name, absolute. Raises UserError where it lies in a bucket that cannot be reached from here."""
    # A bucket's name that has been a pathlib.Path has lost a slash.
    scheme, colon, rest = str(name).partition(":/")
    if not colon or not scheme.isalnum():
        return Path(name).absolute()
    if scheme not in BUCKETS:
        raise UserError(f"{name}: {scheme}:// cannot be read and written here; a folder is a path, gs://… or s3://….")
    if importlib.util.find_spec(BUCKETS[scheme]) is None:
        raise UserError(f"{name}: {scheme}:// needs the package {BUCKETS[scheme]}: `pip install {BUCKETS[scheme]}`.")
    # Other processes write there, too: a listing that is kept would be wrong.
    conf.setdefault(scheme, {})["use_listings_cache"] = False
    return epath.Path(f"{scheme}://{rest.lstrip('/')}")


def in_bucket(folder: Path) -> bool:
    return not isinstance(folder, Path)


def fetched(folder: Path, sizes: dict[str, int], name: str) -> Path:
    """A copy in the cache, under `name`, of the files in `folder`; `sizes` gives their bytes.

    What is there already is kept. Several processes may ask for it at once. Raises UserError where a file is missing, or a file's
    name leads out of the folder.
    """
    copy = cache_root() / "stores" / name
    copy.mkdir(parents=True, exist_ok=True)
    for file, size in sizes.items():
        if Path(file).name != file:
            raise UserError(f"{folder} names a file {file!r}, which is not in it. Prepare the store again.")
        target = copy / file
        if not target.is_file() or target.stat().st_size != size:
            temporary = copy / f".{file}.{os.getpid()}"
            try:
                with (folder / file).open("rb") as source, temporary.open("wb") as sink:
                    while block := source.read(2**24):
                        sink.write(block)
            except FileNotFoundError as error:
                raise UserError(f"{folder / file} is missing. Copy the store there again.") from error
            temporary.rename(target)
    return copy
