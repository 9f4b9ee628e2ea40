"""Reads and writes safetensors files one tensor at a time, so that a model need not fit in memory.

A file consists of eight bytes (little endian: the header's length), a JSON header {name: {dtype,
shape, data_offsets}}, and the tensors' bytes in C order. A model of several files also has an
index {"weight_map": {tensor: file}}.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from paxlike.config import UserError

DTYPES = {
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LARGEST_HEADER = 2**27


def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype for `float32` or `bfloat16`."""
    return DTYPES["BF16"] if name == "bfloat16" else np.dtype(name)


class Entry(NamedTuple):
    """A tensor to write. `read()` returns its array, with this shape and dtype, when needed."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def write(folder: Path, entries: Iterable[Entry], dtype: np.dtype, shard_bytes: int) -> None:
    """Writes the tensors in order to files of at most `shard_bytes` (or one tensor), with an index
    if there are several files.
    """
    shards = list(_shards(entries, dtype.itemsize, shard_bytes))
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    names = [WHOLE] if len(shards) == 1 else names
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard, dtype)
    if len(shards) > 1:
        total = sum(math.prod(entry.shape) * dtype.itemsize for shard in shards for entry in shard)
        weight_map = {
            entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard
        }
        (folder / INDEX).write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
            + "\n"
        )


def _shards(entries: Iterable[Entry], itemsize: int, shard_bytes: int) -> Iterator[list[Entry]]:
    shard: list[Entry] = []
    size = 0
    for entry in entries:
        more = math.prod(entry.shape) * itemsize
        if shard and size + more > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(entry)
        size += more
    yield shard


def write_file(path: Path, entries: list[Entry], dtype: np.dtype) -> None:
    """Writes tensors of one dtype to one file."""
    word = next(word for word, known in DTYPES.items() if known == dtype)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        end = at + math.prod(entry.shape) * dtype.itemsize
        header[entry.name] = {"dtype": word, "shape": list(entry.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            array = np.ascontiguousarray(entry.read())
            if array.shape != entry.shape or array.dtype != dtype:
                raise ValueError(
                    f"{entry.name} is {array.dtype} {array.shape}, not {dtype} {entry.shape}"
                )
            file.write(array.reshape(-1).view(np.uint8).data)


class _Place(NamedTuple):
    path: Path
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]


class Tensors:
    """The tensors of a model's directory. Raises UserError naming a file that is missing, corrupted
    or in another format.
    """

    def __init__(self, folder: Path, file: str = ""):
        """file: the only file to read; without it, those of a model."""
        self.folder = folder
        self._places: dict[str, _Place] = {}
        for path in [folder / file] if file else _files(folder):
            self._places |= _places(path)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: place.shape for name, place in self._places.items()}

    def add_prefix(self, prefix: str) -> None:
        """Adds a prefix to all names, unless one of them has it."""
        if not any(name.startswith(prefix) for name in self._places):
            self._places = {prefix + name: place for name, place in self._places.items()}

    @property
    def dtypes(self) -> set[np.dtype]:
        return {place.dtype for place in self._places.values()}

    def read(self, name: str) -> np.ndarray:
        """The tensor as stored. It is read, not mapped: mapped pages would count as memory of this
        process.
        """
        place = self._places[name]
        found = np.fromfile(place.path, place.dtype, math.prod(place.shape), offset=place.start)
        return found.reshape(place.shape)

    def view(self, name: str) -> np.ndarray:
        """The tensor as a mapped file, whose pages are read when a part of it is used."""
        place = self._places[name]
        try:
            return np.memmap(place.path, place.dtype, "r", place.start, place.shape)
        except OSError as error:
            raise UserError(
                f"{place.path} cannot be read any more: {error.strerror}. Restore it."
            ) from error


def _files(folder: Path) -> list[Path]:
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / INDEX} cannot be read: {type(error).__name__}: {error}."
        ) from error
    except OSError:
        raise UserError(
            f"{folder} has neither {WHOLE} nor {INDEX}; save the model as safetensors. A "
            "pytorch_model.bin is not read, because a pickle can run any code."
        ) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise UserError(
                f"{folder / INDEX} names the file {name!r}, which is not in {folder}; download it "
                "again."
            )
    return [folder / name for name in names]


def _places(path: Path) -> dict[str, _Place]:
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _LARGEST_HEADER):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header = json.loads(file.read(length))
        places = {}
        for name, described in header.items():
            if name == "__metadata__":
                continue
            if described["dtype"] not in DTYPES:
                raise UserError(
                    f"{path}: {name} has type {described['dtype']}; {', '.join(DTYPES)} can be "
                    "read."
                )
            dtype, shape, (start, end) = (
                DTYPES[described["dtype"]],
                tuple(described["shape"]),
                described["data_offsets"],
            )
            if (
                end - start != math.prod(shape) * dtype.itemsize
                or start < 0
                or 8 + length + end > size
            ):
                raise ValueError(
                    f"{name}: bytes {start} to {end} for {described['dtype']} {shape} in a file of "
                    f"{size:,}"
                )
            places[name] = _Place(path, 8 + length + start, dtype, shape)
        return places
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({type(error).__name__}: {error}); "
            "download "
            "it again."
        ) from error
