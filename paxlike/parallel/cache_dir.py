"""The cache directory: compiled programs, plans, the default corpus, copies from buckets."""

import os
from pathlib import Path


def cache_root() -> Path:
    """$PAXLIKE_CACHE, else $XDG_CACHE_HOME/paxlike, else ~/.cache/paxlike.

    A relative XDG_CACHE_HOME is ignored (XDG Base Directory Specification).
    """
    if own := os.environ.get("PAXLIKE_CACHE"):
        return Path(own)
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "paxlike"
