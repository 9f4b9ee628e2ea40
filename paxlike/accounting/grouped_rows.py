"""The rows of a product that runs in blocks of each group's rows, in the name of its scope.

How often a block runs depends on the data (`nn/grouped.py`). Counts of a program read the rows of
all groups together from the scope, which JAX keeps in jaxprs and in compiled programs. What the
last block of a group computes in vain is not counted. Imports no JAX.
"""

import re

_SCOPE = re.compile(r"grouped_rows_(\d+)_once_(\d+)")


def scope(rows: int, groups: int, block: int) -> str:
    """The name of the scope around one loop for each group, over blocks of `block` rows."""
    return f"grouped_rows_{rows}_once_{groups * block}"


def flops_of_all(scopes: str, flops: int) -> int:
    """The FLOPs of a product, of which one block has `flops`: its part of all groups' rows."""
    found = _SCOPE.findall(scopes)
    if not found:
        return flops
    rows, once = map(int, found[-1])
    return flops * rows // once


def is_counted(scopes: str) -> bool:
    """Whether a loop's number of iterations is accounted for by its scope."""
    return bool(_SCOPE.search(scopes))
