"""Reads a store's manifest, and checks the types, ranges and consistency of its values.

The fingerprint covers the content of the files only, so without these checks an edited count would
pass unnoticed.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from paxlike.config import UserError
from paxlike.data.bad_lines import BadLineCount
from paxlike.data.huggingface_tokenizer import DEFINITION, SETTINGS
from paxlike.data.manifest import (
    FORMAT,
    PREPARE_AGAIN,
    SPLITS,
    FileRecord,
    Manifest,
    SplitCounts,
)
from paxlike.data.packing import segment_dtype

TOKENIZER_FILES = {"sentencepiece": ("tokenizer.model",), "huggingface": (DEFINITION, SETTINGS)}
"""Kind of tokenizer -> its files besides tokenizer.json."""
_LIMIT = 1 << 62
_ROUNDING = 1e-6


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store.

    Raises UserError if the directory has none, or it cannot be read, is of another format, was
    edited or has impossible values.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a token store: it has no manifest.json. {PREPARE_AGAIN}.")
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise UserError(
                f"{path} has format {values['format']}, this version reads {FORMAT}. "
                f"{PREPARE_AGAIN}."
            )
        fingerprint = values.pop("fingerprint")
        for name, kind in (
            ("splits", SplitCounts),
            ("files", FileRecord),
            ("bad_lines", BadLineCount),
        ):
            values[name] = {key: kind(**part) for key, part in values.get(name, {}).items()}
        manifest = Manifest(**values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise UserError(
            f"{path} cannot be read: {type(error).__name__}: {error}. {PREPARE_AGAIN}."
        ) from error
    outside = [
        name for name in manifest.files if Path(name).name != name or name in ("", ".", "..")
    ]
    if outside:
        raise UserError(
            f"{path} names files that are not in its directory: {outside}. {PREPARE_AGAIN}."
        )
    if manifest.fingerprint != fingerprint:
        raise UserError(
            f"{path} was edited: its fingerprint does not match its content. {PREPARE_AGAIN}."
        )
    if found := problems(manifest):
        raise UserError(f"{path} has impossible values: {'; '.join(found)}. {PREPARE_AGAIN}.")
    return manifest


def problems(manifest: Manifest) -> list[str]:
    """What is wrong, one phrase per value; empty if nothing is. Expects the declared fields
    only.
    """
    found = [*_types(manifest)]
    # Relations between values need values of the right types.
    others = _ranges, _bad_lines, _conversations
    return found or [line for check in others for line in check(manifest)] or [*_sizes(manifest)]


def _types(manifest: Manifest) -> Iterator[str]:
    """Fields of the wrong type. A bool is not a number here; an int may stand for a float."""
    parts = [("", manifest)]
    for group in ("splits", "files", "bad_lines"):
        parts += [(f"{group}.{key}.", part) for key, part in getattr(manifest, group).items()]
    for prefix, part in parts:
        for field in dataclasses.fields(part):
            value, name = getattr(part, field.name), f"{prefix}{field.name}"
            kind: Any = getattr(field.type, "__origin__", field.type)
            if kind in (int, float):
                number = isinstance(value, int | float if kind is float else int)
                if isinstance(value, bool) or not number or not abs(value) < _LIMIT:
                    yield f"{name} is {value!r}, not a number of type {kind.__name__}"
            elif not isinstance(value, kind):
                yield f"{name} is {value!r}, not of type {kind.__name__}"
    for table in ("inputs", "dropped", "predicted"):
        counts = getattr(manifest, table)
        for name, size in counts.items() if isinstance(counts, dict) else ():
            if type(size) is not int or not 0 <= size < _LIMIT:
                yield f"{table}[{name!r}] is {size!r}, not a number of bytes or documents"


def _ranges(manifest: Manifest) -> Iterator[str]:
    m = manifest
    for name, values in (
        ("tokenizer", ("bytes", "sentencepiece", "huggingface")),
        ("dtype", ("<u2", "<u4")),
        ("packing", ("split", "whole")),
    ):
        if getattr(m, name) not in values:
            yield f"{name} is {getattr(m, name)!r}, not {' or '.join(values)}"
    largest = 1 << 16 if m.dtype == "<u2" else 1 << 32
    if not 1 <= m.vocab_size <= largest:
        yield f"vocab_size is {m.vocab_size}, not in 1 … {largest} (dtype {m.dtype})"
    elif not 0 <= m.eod < m.vocab_size:
        yield f"eod is {m.eod}, not an id below vocab_size {m.vocab_size}"
    if m.sequence_length < 0 or (m.packing == "whole") != (m.sequence_length > 0):
        yield f"sequence_length is {m.sequence_length} for packing {m.packing}"
    if not 0 <= m.validation_fraction < 1:
        yield f"validation_fraction is {m.validation_fraction}, not in 0 … 1"
    if sorted(m.splits) != sorted(SPLITS):
        yield f"splits are {sorted(m.splits)}, not {list(SPLITS)}"
    for split, counts in m.splits.items():
        yield from _split(m, split, counts)
    for name, record in m.files.items():
        if record.bytes < 0:
            yield f"files.{name}.bytes is {record.bytes}"
        if not re.fullmatch("[0-9a-f]{64}", record.sha256):
            yield f"files.{name}.sha256 is {record.sha256!r}, not 64 hexadecimal digits"


def _split(manifest: Manifest, split: str, counts: SplitCounts) -> Iterator[str]:
    whole = manifest.packing == "whole"
    for name in ("documents", "tokens", "text_bytes", "rows"):
        if getattr(counts, name) < 0:
            yield f"splits.{split}.{name} is {getattr(counts, name)}"
    if not whole and counts.rows:
        yield f"splits.{split}.rows is {counts.rows} for packing split"
    if counts.documents > max(counts.tokens, 1) or (counts.tokens and not counts.documents):
        yield f"splits.{split} has {counts.tokens} tokens in {counts.documents} documents"
    room = counts.rows * manifest.sequence_length
    if whole and counts.tokens > room:
        yield f"splits.{split} has {counts.tokens} tokens in rows for {room}"
    expected = counts.tokens / max(room, 1) if whole else 1.0
    if not math.isclose(counts.efficiency, expected, rel_tol=0, abs_tol=_ROUNDING):
        yield f"splits.{split}.efficiency is {counts.efficiency}, not {expected:.6f}"


def _bad_lines(manifest: Manifest) -> Iterator[str]:
    for kind, found in manifest.bad_lines.items():
        places = all(isinstance(place, str) for place in found.first)
        if not places or not 0 < len(found.first) <= found.count:
            yield f"bad_lines.{kind} has a count of {found.count} and places {found.first!r}"


def _conversations(manifest: Manifest) -> Iterator[str]:
    documents = sum(counts.documents for counts in manifest.splits.values())
    if not 0 <= manifest.truncated <= documents:
        yield f"truncated is {manifest.truncated} of {documents} documents"
    if manifest.predicted and sorted(manifest.predicted) != sorted(SPLITS):
        yield f"predicted has {sorted(manifest.predicted)}, not {list(SPLITS)}"
    for split, counts in manifest.splits.items():
        if manifest.predicted.get(split, 0) > counts.tokens:
            yield f"predicted.{split} is {manifest.predicted[split]} of {counts.tokens} tokens"


def _sizes(manifest: Manifest) -> Iterator[str]:
    """Files that are missing, or whose size does not follow from the counts."""
    expected: dict[str, int | None] = {"tokenizer.json": None}
    for name in TOKENIZER_FILES.get(manifest.tokenizer, ()):
        expected[name] = None
    masked = any(f"{split}.loss_mask" in manifest.files for split in SPLITS)
    for split, counts in manifest.splits.items():
        whole = manifest.packing == "whole"
        stored = counts.rows * manifest.sequence_length if whole else counts.tokens
        expected[f"{split}.tokens"] = stored * np.dtype(manifest.dtype).itemsize
        if whole:
            segment = segment_dtype(manifest.sequence_length)
            expected[f"{split}.segments"] = stored * segment.itemsize
        if masked:
            expected[f"{split}.loss_mask"] = stored
    for name, size in expected.items():
        if name not in manifest.files:
            yield f"files has no {name}"
        elif size is not None and manifest.files[name].bytes != size:
            yield f"files.{name}.bytes is {manifest.files[name].bytes:,}; the counts give {size:,}"
