"""The sliding window of an attention kernel, in the name of the scope around it.

The arrays of a kernel do not show its window. Counts of a program read it from the scope, which
JAX keeps in jaxprs and in compiled programs. Imports no JAX.
"""

import re


def scope(window: int) -> str:
    """The name of the scope around a kernel with this window."""
    return f"attention_window_{window}"


def keys_per_query(scopes: str, keys: int) -> int:
    """The keys per query that a kernel with `keys` keys computes, by the names of its scopes."""
    windows = re.findall(r"attention_window_(\d+)", scopes)
    return min([keys, *map(int, windows)])
