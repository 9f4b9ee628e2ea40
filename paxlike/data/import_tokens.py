"""`paxlike data import`: a token store from the token files of nanoGPT, llm.c or Megatron-LM.

- nanoGPT's .bin: uint16 ids, documents separated by the end-of-document id.
- llm.c's .bin: the same as uint16 or uint32, after a header of 256 int32 that begins with a magic
  number.
- Megatron-LM's .idx and .bin: ids of a dtype that the index names, and the documents' sequences.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paxlike.config import UserError
from paxlike.config.validation import require
from paxlike.data import writer
from paxlike.data.manifest import FORMAT, Manifest, write_manifest
from paxlike.data.prepare import named_tokenizer
from paxlike.data.progress import progress, say
from paxlike.data.store import Store, open_store
from paxlike.data.tokenizer import Tokenizer
from paxlike.files import check_new, new_folder

_LLM_C: dict[int, np.dtype] = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}
"""Magic number -> dtype of the tokens."""
_LLM_C_HEADER = 256 * 4
_MEGATRON_MAGIC = b"MMIDIDX\0\0"
_MEGATRON_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_SLAB = 1 << 22


@dataclass(frozen=True)
class ImportConfig:
    """Makes a token store from the token files of nanoGPT, llm.c (.bin) or Megatron-LM (.idx and
    .bin).
    """

    input: str
    """A .bin or .idx file, or a directory with train.bin and val.bin, whose val.bin becomes the
    validation split."""
    output: str
    """Directory to write the token store to. It must not exist."""
    tokenizer: str
    """What the tokens were made with: `bytes`, the path of a tokenizer.json or of a Hugging Face
    folder that has one, or of a SentencePiece .model file."""
    validation_fraction: float = 0.01
    """Fraction of the documents used for validation, chosen by a hash of their content."""

    def __post_init__(self):
        require(bool(self.input), "input is empty; name a .bin or .idx file with --input.")
        require(bool(self.output), "output is empty; name the directory to write with --output.")
        require(bool(self.tokenizer), "tokenizer is empty; name it with --tokenizer.")
        require(
            0 < self.validation_fraction < 1,
            f"validation_fraction is {self.validation_fraction}; it must be between 0 and 1.",
        )


@dataclass(frozen=True)
class TokenFile:
    """Memory-mapped tokens and where their documents end."""

    path: Path
    tokens: np.ndarray
    ends: np.ndarray
    """int64 [documents], ascending: the token after each document."""


def import_tokens(config: ImportConfig) -> Store:
    """Writes the store and opens it. Raises UserError, and leaves nothing behind."""
    tokenizer, output = named_tokenizer(config.tokenizer), Path(config.output)
    check_new(output)
    files = _files(Path(config.input).expanduser(), tokenizer)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    with new_folder(output) as folder:
        tokenizer_files = tokenizer.save(folder)
        _copy(files, tokenizer, dtype, folder)
        documents = np.memmap(folder / "documents", writer.DOCUMENT, "r")
        data = writer.Tokenized(np.memmap(folder / "tokens", dtype, "r"), documents)
        if len(files) == 1:
            hashes = documents["hash"]
            threshold = writer.validation_threshold(hashes, config.validation_fraction)
        else:
            threshold = 1  # the hash of the documents of val.bin is 0
        splits, written = writer.write_streams(data, threshold, folder)
        for name in ("tokens", "documents"):
            (folder / name).unlink()
        manifest = Manifest(
            format=FORMAT,
            tokenizer=tokenizer.kind,
            lossless=tokenizer.lossless,
            vocab_size=tokenizer.vocab_size,
            eod=tokenizer.eod,
            dtype=dtype.str,
            packing="split",
            sequence_length=0,
            validation_fraction=config.validation_fraction,
            splits=splits,
            files=written | {name: writer.file_record(folder / name) for name in tokenizer_files},
            inputs={str(file.path): file.path.stat().st_size for file in files},
        )
        write_manifest(folder, manifest)
    for split, counts in splits.items():
        say(f"{output}: {split} {counts.documents:,} documents, {counts.tokens:,} tokens")
    return open_store(output)


def _files(path: Path, tokenizer: Tokenizer) -> list[TokenFile]:
    """The training file and, if the input has one, the validation file."""
    paths = [path]
    if path.is_dir():
        paths = [path / "train.bin", path / "val.bin"]
        missing = [one.name for one in paths if not one.is_file()]
        if missing:
            raise UserError(
                f"the directory {path} has no {' and no '.join(missing)}; name a .bin or .idx file."
            )
    found = [_open(one, tokenizer) for one in paths]
    for file in found:
        if not len(file.tokens):
            raise UserError(f"{file.path} has no tokens.")
    return found


def _open(path: Path, tokenizer: Tokenizer) -> TokenFile:
    index = path.with_suffix(".idx")
    try:
        if index.is_file():
            return _megatron(index)
        with path.open("rb") as file:
            head = file.read(_LLM_C_HEADER)
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    magic = struct.unpack("<i", head[:4])[0] if len(head) == _LLM_C_HEADER else 0
    dtype, begin = _LLM_C.get(magic, np.dtype("<u2")), _LLM_C_HEADER if magic in _LLM_C else 0
    if (size - begin) % dtype.itemsize:
        raise UserError(
            f"{path} has {size:,} bytes, which is no whole number of {dtype.itemsize}-byte tokens; "
            "it is truncated or of another format."
        )
    count = (size - begin) // dtype.itemsize
    empty: np.ndarray = np.zeros(0, dtype)
    tokens = np.memmap(path, dtype, "r", begin, (count,)) if count else empty
    if magic in _LLM_C and struct.unpack("<i", head[8:12])[0] != count:
        raise UserError(
            f"{path} says that it has {struct.unpack('<i', head[8:12])[0]:,} tokens, but has "
            f"{count:,}; it is truncated."
        )
    ends: list[np.ndarray] = [np.zeros(0, np.int64)]
    for start in range(0, count, _SLAB):
        ends.append(start + np.flatnonzero(tokens[start : start + _SLAB] == tokenizer.eod) + 1)
    return TokenFile(path, tokens, _with_end(np.concatenate(ends), count))


def _with_end(ends: np.ndarray, total: int) -> np.ndarray:
    """The ends of documents, of which the last is the end of the file."""
    found = [] if not total or (len(ends) and ends[-1] == total) else [total]
    return np.concatenate([ends, np.array(found, np.int64)])


def _megatron(index: Path) -> TokenFile:
    """An index of Megatron-LM: sizes of the sequences, and the first sequence of each document."""
    data, path = index.read_bytes(), index.with_suffix(".bin")

    def broken(reason: str) -> UserError:
        return UserError(f"{index} is no index of Megatron-LM: {reason}.")

    if not data.startswith(_MEGATRON_MAGIC) or len(data) < 34:
        raise broken("it does not begin with MMIDIDX")
    version, code, sequences, documents = struct.unpack("<QBQQ", data[9:34])
    if version != 1 or code not in _MEGATRON_DTYPES:
        raise broken(f"it has version {version} and dtype {code}")
    if len(data) < 34 + 12 * sequences + 8 * documents:
        raise broken("it is truncated")
    sizes = np.frombuffer(data, "<i4", sequences, 34).astype(np.int64)
    firsts = np.frombuffer(data, "<i8", documents, 34 + 12 * sequences)
    dtype = np.dtype(_MEGATRON_DTYPES[code])
    total = int(sizes.sum())
    found = path.stat().st_size if path.is_file() else 0
    if found != total * dtype.itemsize:
        raise UserError(
            f"{path} has {found:,} bytes; {index.name} says {total * dtype.itemsize:,}. Copy both "
            "files again."
        )
    if sizes.min(initial=0) < 0 or not all(0 <= first <= sequences for first in firsts.tolist()):
        raise broken("it has impossible sizes")
    bounds = np.concatenate([[0], np.cumsum(sizes)])[firsts]
    empty: np.ndarray = np.zeros(0, dtype)
    tokens = np.memmap(path, dtype, "r") if total else empty
    return TokenFile(path, tokens, _with_end(np.unique(bounds[bounds > 0]), total))


def _copy(files: list[TokenFile], tokenizer: Tokenizer, dtype: np.dtype, folder: Path) -> None:
    """Writes `tokens` and `documents`, every document with its end."""
    end = np.array([tokenizer.eod], dtype)
    total = sum(file.tokens.nbytes for file in files)
    with (
        (folder / "tokens").open("xb") as token_file,
        (folder / "documents").open("xb") as document_file,
        progress("importing", total) as advance,
    ):
        for number, file in enumerate(files):
            for document in _documents(file, tokenizer):
                ids = document.astype(dtype)
                if ids[-1] != tokenizer.eod:
                    ids = np.concatenate([ids, end])
                token_file.write(ids.data)
                content = hashlib.blake2b(ids.data, digest_size=8).digest()
                hash_ = int.from_bytes(content, "little")
                if len(files) > 1:
                    hash_ = max(1, hash_) if number == 0 else 0
                document_file.write(np.array([(hash_, len(ids), 0)], writer.DOCUMENT).data)
                advance(document.nbytes)


def _documents(file: TokenFile, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    begin = 0
    for end in file.ends.tolist():
        document = np.asarray(file.tokens[begin:end])
        if document.size:
            low, high = int(document.min()), int(document.max())
            if low < 0 or high >= tokenizer.vocab_size:
                raise UserError(
                    f"{file.path} has the id {high if low >= 0 else low} near token {begin:,}, but "
                    f"the tokenizer has ids from 0 to {tokenizer.vocab_size - 1}; name the one "
                    "that the file was made with."
                )
            yield document
        begin = end
