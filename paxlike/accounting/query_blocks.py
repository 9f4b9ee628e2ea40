"""The blocks of queries in which `nn/blocked.py` computes attention. Imports no JAX."""

from typing import NamedTuple

MAX_QUERY_BLOCKS, MIN_BLOCK_QUERIES = 8, 128
"""Blocks of `nn/blocked.py`: at most 8, of at least 128 queries (except for the last block)."""


class KeyBlock(NamedTuple):
    """A block of queries, and the keys that it attends to."""

    queries: slice
    keys: slice


def query_blocks(sequence_length: int, window: int = 0) -> list[KeyBlock]:
    """Returns the blocks of queries. Keys end with the block and begin with the window of its first
    query (0: no window).
    """
    size = max(MIN_BLOCK_QUERIES, -(-sequence_length // MAX_QUERY_BLOCKS))
    blocks = []
    for begin in range(0, sequence_length, size):
        end = min(begin + size, sequence_length)
        first = max(0, begin - window + 1) if window else 0
        blocks.append(KeyBlock(slice(begin, end), slice(first, end)))
    return blocks
