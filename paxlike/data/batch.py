"""What a train step reads."""

from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """B sequences of T tokens.

    Letters: B batch, T time.
    """

    tokens_BT: np.ndarray
    """int32: what the model sees."""
    targets_BT: np.ndarray
    """int32: the token that follows each position; -1 where nothing is to be predicted."""
    segments_BT: np.ndarray | None
    """int32: attention stays among equal numbers; 1, 2, … in a row, 0 is padding. None: one segment a row."""
