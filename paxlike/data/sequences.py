"""A split of a store as numbered sequences of T tokens."""

from collections.abc import Sequence

import numpy as np

from paxlike.config import ConfigError, DataConfig, UserError
from paxlike.data.batch import Batch
from paxlike.data.manifest import PREPARE_AGAIN, Split
from paxlike.data.store import Store


class Sequences:
    """The sequences of a split, numbered from 0, with thread-safe random access.

    Packing split: sequence i is tokens[i*T : i*T + T], and its targets are shifted by one token; an
    incomplete last sequence is left out. Packing whole: sequence i is row i, and a target is the
    next token of the same segment.

    Raises ConfigError if the packing of the store differs from `data`, UserError if the split is
    too small for one sequence.
    """

    def __init__(self, store: Store, data: DataConfig, split: Split):
        manifest, self._length = store.manifest, data.sequence_length
        if manifest.packing != data.packing:
            raise ConfigError(
                f"data.packing is {data.packing!r}, the store {store.folder} is packed "
                f"{manifest.packing!r}; set data.packing to {manifest.packing!r}, or prepare the "
                f"text again with --packing {data.packing}."
            )
        if manifest.packing == "whole" and manifest.sequence_length != self._length:
            raise ConfigError(
                f"data.sequence_length is {self._length}, the store {store.folder} is packed whole "
                f"for {manifest.sequence_length}; set data.sequence_length to "
                f"{manifest.sequence_length}, or prepare the text again with --sequence-length "
                f"{self._length}."
            )
        self._tokens = store.tokens(split)
        self._segments = store.segments(split) if manifest.packing == "whole" else None
        self._loss_mask = store.loss_mask(split)
        self._count = (
            len(self._tokens)
            if manifest.packing == "whole"
            else (len(self._tokens) - 1) // self._length
        )
        if self._count <= 0:
            raise _too_small(store, split, self._length)

    def __len__(self) -> int:
        return self._count

    def read(self, numbers: Sequence[int]) -> Batch:
        """The sequences of these numbers. A number outside 0 … len - 1 gives padding without
        targets.
        """
        length = self._length
        tokens = np.zeros((len(numbers), length), np.int32)
        targets = np.full((len(numbers), length), -1, np.int32)
        segments = None if self._segments is None else np.zeros((len(numbers), length), np.int32)
        mask = None if self._loss_mask is None else np.zeros((len(numbers), length), bool)
        for row, number in enumerate(numbers):
            if not 0 <= number < self._count:
                continue
            if segments is None:
                stretch = self._tokens[number * length : (number + 1) * length + 1]
                tokens[row], targets[row] = stretch[:-1], stretch[1:]
                if self._loss_mask is not None:
                    mask_after = self._loss_mask[number * length + 1 : (number + 1) * length + 1]
                    targets[row] = np.where(mask_after, targets[row], -1)
            else:
                assert self._segments is not None
                tokens[row], segments[row] = self._tokens[number], self._segments[number]
                if mask is not None and self._loss_mask is not None:
                    mask[row] = self._loss_mask[number]
        return Batch(
            tokens,
            targets if segments is None else targets_within(tokens, segments, mask),
            segments,
        )


def targets_within(
    tokens: np.ndarray, segments: np.ndarray, loss_mask: np.ndarray | None = None
) -> np.ndarray:
    """Targets, int32 [..., T]: the next token if it is in the same segment, else -1.

    loss_mask: 1 for tokens that are predicted; the others give -1. None: all are predicted.
    """
    inside = (segments[..., 1:] == segments[..., :-1]) & (segments[..., 1:] > 0)
    if loss_mask is not None:
        inside = inside & (loss_mask[..., 1:] > 0)
    targets = np.full(tokens.shape, -1, np.int32)
    targets[..., :-1] = np.where(inside, tokens[..., 1:], -1)
    return targets


def _too_small(store: Store, split: Split, length: int) -> UserError:
    counts = store.manifest.splits[split]
    if counts.documents == 0:
        return UserError(
            f"the {split} split of the store {store.folder} is empty: all documents are identical, "
            f"and used for training. {PREPARE_AGAIN} from texts that differ."
        )
    larger = " or with a larger --validation-fraction" if split == "validation" else ""
    return UserError(
        f"the {split} split of the store {store.folder} has {counts.tokens} tokens, too few for "
        "one "
        f"sequence of data.sequence_length {length} and the token after it. {PREPARE_AGAIN} from "
        f"more text{larger}, or set a smaller data.sequence_length."
    )
