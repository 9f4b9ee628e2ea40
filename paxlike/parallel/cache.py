"""Where what can be made again is kept: compiled programs, plans, the default corpus, copies from buckets."""

import os
from pathlib import Path


def cache_root() -> Path:
    """$PAXLIKE_CACHE, or ~/.cache/paxlike."""
    return Path(os.environ.get("PAXLIKE_CACHE") or Path.home() / ".cache" / "paxlike")
