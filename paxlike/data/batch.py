"""The input of a train step."""

from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """B sequences of T tokens.

    Letters: B batch, T time.
    """

    tokens_BT: np.ndarray
    """int32: the model's input."""
    targets_BT: np.ndarray
    """int32: the token that follows each position; -1 if there is no target."""
    segments_BT: np.ndarray | None
    """int32 segment ids: attention stays within a segment. Each row counts 1, 2, …; 0 is padding.
    None: every row is one segment."""
