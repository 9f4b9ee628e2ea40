"""The default corpus: the machine's own Python standard library, tokenized once and cached."""

import hashlib
import json
import platform
from pathlib import Path

from paxlike.config import DataConfig, UserError
from paxlike.data.corpus import standard_library
from paxlike.data.prepare import PrepareConfig, prepare_files
from paxlike.data.store import FORMAT, open_store
from paxlike.parallel.cache import cache_root


def default_store(data: DataConfig, files: list[Path] | None = None) -> Path:
    """The folder of the store of the default corpus (or of `files`) with the tokenizer and packing that `data` names.

    It is prepared where it is not in the cache yet: $PAXLIKE_CACHE, or ~/.cache/paxlike. Its name holds the Python
    version, the settings, and a hash of the files' names and sizes. Several processes may ask for it at once: the first
    to finish gives it its name. Raises UserError.
    """
    files = files or standard_library()
    packing = data.packing if data.packing == "split" else f"whole-{data.sequence_length}"
    tokenizer = data.tokenizer if data.tokenizer == "bytes" else f"sentencepiece-{data.tokenizer_vocab}"
    content = json.dumps([FORMAT, *((path.name, path.stat().st_size) for path in files)])
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    folder = cache_root() / "stores" / f"python-{platform.python_version()}-{tokenizer}-{packing}-{digest}"
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
            if not folder.exists():  # Otherwise another process was first.
                raise
    open_store(folder)
    return folder
