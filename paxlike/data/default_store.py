"""The default corpus: the installed Python's standard library, tokenized once and cached."""

import hashlib
import json
import platform
from pathlib import Path

from paxlike.config import DataConfig, UserError
from paxlike.data.input_files import standard_library
from paxlike.data.manifest import FORMAT
from paxlike.data.prepare import PrepareConfig, prepare_files
from paxlike.data.store import open_store
from paxlike.parallel.cache_dir import cache_root


def default_store(data: DataConfig, files: list[Path] | None = None) -> Path:
    """The store of the default corpus (or of `files`), prepared as `data` says; its directory.

    A store that is not cached yet is prepared (see `cache_root`). Its name has the Python version,
    the settings, and a hash of the files' names and sizes. Several processes may ask for it at
    once: the first to finish names it. Raises UserError.
    """
    files = files or standard_library()
    packing = data.packing if data.packing == "split" else f"whole-{data.sequence_length}"
    tokenizer = (
        data.tokenizer if data.tokenizer == "bytes" else f"sentencepiece-{data.tokenizer_vocab}"
    )
    content = json.dumps([FORMAT, *((path.name, path.stat().st_size) for path in files)])
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    folder = (
        cache_root()
        / "stores"
        / f"python-{platform.python_version()}-{tokenizer}-{packing}-{digest}"
    )
    if not folder.exists():
        config = PrepareConfig(
            input=("Python's standard library",),
            output=str(folder),
            tokenizer=data.tokenizer,
            tokenizer_vocab=data.tokenizer_vocab,
            packing=data.packing,
            sequence_length=data.sequence_length if data.packing == "whole" else 0,
            validation_fraction=0.05,
            errors="replace",
        )
        try:
            prepare_files(files, config)
        except UserError:
            if not folder.exists():  # Otherwise another process finished first.
                raise
    open_store(folder)
    return folder
