"""Which files a corpus consists of, and which of them can be read."""

import glob
import json
import os
import sysconfig
from pathlib import Path
from typing import Literal, NamedTuple

import fsspec

from paxlike.config import UserError
from paxlike.data.decompression import SUFFIXES
from paxlike.data.location import located

Content = Literal["text", "jsonl", "csv", "parquet", "arrow"]
_CONTENT: dict[str, Content] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_TABLES = ("parquet", "arrow")
_IN_FOLDERS = (".txt", ".text", *_CONTENT)
"""Suffixes of the files that are read of a folder."""
_NO_TEXT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_CONVERT = "Convert it to JSONL (one JSON object per line) or plain text"
_UNPACKED = "Decompress it; tables are compressed inside"
_UNPACK = "Unpack it and name the files in it"
_RECOMPRESS = "Decompress it, or compress it with gzip, bzip2, xz or zstd"
_REFUSED = {
    "a tab-separated table": (_CONVERT, ".tsv"),
    "an Avro file": (_CONVERT, ".avro"),
    "an ORC file": (_CONVERT, ".orc"),
    "a TFRecord file": (_CONVERT, ".tfrecord .tfrecords"),
    "a spreadsheet": (_CONVERT, ".xls .xlsx .ods"),
    "a PDF file": (_CONVERT, ".pdf"),
    "a word processor document": (_CONVERT, ".docx .odt .rtf"),
    "an e-book": (_CONVERT, ".epub .mobi"),
    "a NumPy file": (_CONVERT, ".npy .npz"),
    "a Python pickle": (_CONVERT, ".pkl .pickle"),
    "an HDF5 file": (_CONVERT, ".h5 .hdf5"),
    "a SQLite database": (_CONVERT, ".sqlite .sqlite3"),
    "an archive": (_UNPACK, ".zip .tar .tgz .tbz2 .txz .rar .7z"),
    "compressed in an unsupported way": (_RECOMPRESS, ".lzma .lz4 .br .snappy"),
}
_REFUSED_SUFFIXES = {
    suffix: (kind, remedy)
    for kind, (remedy, suffixes) in _REFUSED.items()
    for suffix in suffixes.split()
}
_SIGNATURES = {
    b"PAR1": ("a Parquet file", "Give its name the suffix .parquet"),
    b"ARROW1": ("an Arrow file", "Give its name the suffix .arrow"),
    b"%PDF-": ("a PDF file", _CONVERT),
    b"SQLite format 3\0": ("a SQLite database", _CONVERT),
    b"\x89HDF": ("an HDF5 file", _CONVERT),
    b"\xd0\xcf\x11\xe0": ("a Microsoft Office document", _CONVERT),
    b"PK\x03\x04": ("a zip archive", _UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"\xfd7zXZ\0": ("compressed with xz", "Give its name the suffix .xz"),
    b"\x1f\x8b": ("compressed with gzip", "Give its name the suffix .gz"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "Give its name the suffix .zst"),
    b"BZh91AY&SY": ("compressed with bzip2", "Give its name the suffix .bz2"),
    b"\xff\xfe": ("UTF-16 text", "Convert it with `iconv -f UTF-16 -t UTF-8`"),
    b"\xfe\xff": ("UTF-16 text", "Convert it with `iconv -f UTF-16 -t UTF-8`"),
}
SIGNATURE_BYTES = max(map(len, _SIGNATURES))


class FileFormat(NamedTuple):
    """What a file's name says of its content."""

    content: Content
    compression: str
    """Suffix in lower case: .gz, .bz2, .xz, .zst, or "" if the file is not compressed."""


def file_format(path: Path) -> FileFormat:
    """The format by the suffixes, in any case. Raises UserError if it is one that is not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in SUFFIXES else ""
    content = suffixes[-1] if suffixes else ""
    if content in _REFUSED_SUFFIXES:
        raise _refusal(path, *_REFUSED_SUFFIXES[content])
    found = FileFormat(_CONTENT.get(content, "text"), compression)
    if compression and found.content in _TABLES:
        raise _refusal(path, f"a compressed {content} file", _UNPACKED)
    return found


def check_signature(path: Path, head: bytes) -> None:
    """Raises UserError if a text file begins as a well-known binary format does."""
    for signature, (kind, remedy) in _SIGNATURES.items():
        if head.startswith(signature):
            raise _refusal(path, kind, remedy)


def _refusal(path: Path, kind: str, remedy: str) -> UserError:
    return UserError(
        f"{path} is {kind} and cannot be read as UTF-8 text. {remedy}, or exclude it from --input. "
        "Supported: plain text, .jsonl, .ndjson, .json and .csv, each also as .gz, .bz2, .xz or "
        ".zst; .parquet, .arrow and .feather."
    )


def find_files(patterns: tuple[str, ...]) -> list[Path]:
    """The files that match the names and patterns, sorted by name. `**` matches subdirectories.

    A directory stands for the files in it whose suffix is one of a supported format, and one that
    `datasets.save_to_disk` wrote for its rows. Names in buckets begin with gs:// or s3://.

    A file that is found under several names (relative and absolute, a symbolic link) is read once,
    under the first of them in sorted order. A name that exists is taken literally, even if it
    contains the characters of a pattern.

    Raises UserError for a pattern that matches no file, and for a file of a format that is not
    read.
    """
    names: set[str] = set()
    for pattern in patterns:
        matches = _in_bucket(pattern) if "://" in pattern else _on_disk(pattern)
        if not matches:
            raise UserError(f"no file matches the input {pattern!r} (in {Path.cwd()}).")
        names.update(matches)
    files: dict[str, Path] = {}
    for name in sorted(names):
        file_format(Path(name))
        path = located(name) if "://" in name else Path(name)
        files.setdefault(name if "://" in name else os.path.realpath(name), path)
    return list(files.values())


def _on_disk(pattern: str) -> list[str]:
    folder = os.path.expanduser(pattern)
    if not os.path.isdir(folder):
        return [name for name in _matches(pattern) if os.path.isfile(name)]
    if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
        raise UserError(
            f"{pattern} has several splits ({', '.join(sorted(next(os.walk(folder))[1]))}); name "
            "the directory of one of them."
        )
    if os.path.isfile(os.path.join(folder, "state.json")):
        return _saved_dataset(folder)
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(root, name) for name in names if _is_text(name)]
    if not found:
        raise UserError(
            f"the directory {pattern} has no file with the suffix {' '.join(_IN_FOLDERS)}; name "
            "its files with a pattern."
        )
    return found


def _is_text(name: str) -> bool:
    """Whether a file of a directory is read."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if suffixes and suffixes[-1] in SUFFIXES:
        suffixes.pop()
    hidden = name.startswith(".") or name in _NO_TEXT
    return not hidden and bool(suffixes) and suffixes[-1] in _IN_FOLDERS


def _saved_dataset(folder: str) -> list[str]:
    """The files of a directory that `datasets.save_to_disk` wrote."""
    path = Path(folder, "state.json")
    try:
        state = json.loads(path.read_text())
        names = [Path(file["filename"]).name for file in state["_data_files"]]
        selected = state.get("_indices_files") or state.get("_indices_data_files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}.") from error
    if selected:
        raise UserError(
            f"{folder} selects rows by indices; save it again after `dataset.flatten_indices()`."
        )
    missing = [name for name in names if not Path(folder, name).is_file()]
    if missing:
        raise UserError(f"{path} names files that are missing: {', '.join(missing)}.")
    return [os.path.join(folder, name) for name in names]


def _in_bucket(pattern: str) -> list[str]:
    located(pattern)  # raises UserError for a bucket that cannot be used
    scheme, _, rest = pattern.partition("://")
    system = fsspec.filesystem(scheme)
    rest = rest.rstrip("/")
    if any(character in rest for character in "*?[") and not system.exists(rest):
        found = [name for name in system.glob(rest) if system.isfile(name)]
    elif system.isdir(rest):
        found = [name for name in system.find(rest) if _is_text(name.rpartition("/")[2])]
    else:
        found = [rest] if system.exists(rest) else []
    return [f"{scheme}://{name}" for name in found]


def _matches(pattern: str) -> list[str]:
    name = str(Path(os.path.expanduser(pattern)))
    if os.path.isfile(name):
        return [name]
    # Leading directories that exist are literal: their names may contain [ ] * ?.
    parts = Path(name).parts
    for count in range(len(parts), 0, -1):
        head = os.path.join(*parts[:count])
        if os.path.isdir(head):
            return glob.glob(os.path.join(glob.escape(head), *parts[count:]), recursive=True)
    return glob.glob(name, recursive=True)


def standard_library() -> list[Path]:
    """The source files of this Python's standard library, without its tests, sorted.

    Raises UserError if there are none: some Python distributions ship bytecode only.
    """
    root = Path(sysconfig.get_path("stdlib"))
    excluded = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = set(folders) - excluded
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    if not files:
        raise UserError(
            f"this Python has no source code of its standard library in {root}. Prepare your own "
            "text with `paxlike data prepare` and set data.store to its directory."
        )
    return sorted(files)
