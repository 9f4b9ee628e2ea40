"""The splits of conversations, from what `tokenize_files` wrote."""

from pathlib import Path

import numpy as np

from paxlike.config import UserError
from paxlike.data import writer

_SLAB = 1 << 14


def predicted_tokens(data: writer.Tokenized, most: int) -> np.ndarray:
    """int64 [documents]: how many of the first `most` tokens of each document are predicted.

    A document's first token never is: nothing comes before it.
    """
    assert data.loss_mask is not None
    lengths = data.documents["tokens"].astype(np.int64)
    found = np.zeros(len(lengths), np.int64)
    start = 0
    for begin in range(0, len(lengths), _SLAB):
        some = lengths[begin : begin + _SLAB]
        starts = np.cumsum(some) - some
        size = int(some.sum())
        mask = np.append(data.loss_mask[start : start + size], np.uint8(0))
        # Sums of [first token + 1, end) at the even places; the odd ones lie between documents.
        edges = np.stack([starts + 1, starts + np.minimum(some, most)], 1)
        edges[:, 1] = np.maximum(edges[:, 1], edges[:, 0])
        sums = np.add.reduceat(mask, np.minimum(edges, size).reshape(-1), dtype=np.int64)[::2]
        found[begin : begin + _SLAB] = np.where(edges[:, 1] > edges[:, 0], sums, 0)
        start += size
    return found


def write_conversations(
    data: writer.Tokenized, fraction: float, folder: Path, row_tokens: int
) -> tuple[dict, dict, int, dict[str, int], int]:
    """Packs conversations whole into rows; longer ones lose their end.

    Returns (splits, files, truncated, predicted, dropped because nothing of them is predicted) of
    the manifest. Raises UserError if there are fewer than two, or all tokens or none are predicted.
    """
    counts = predicted_tokens(data, row_tokens)
    wanted = np.ones(len(counts), bool) if data.kept is None else data.kept
    kept = wanted & (counts > 0)
    dropped = int((wanted & ~kept).sum())
    lengths = np.minimum(data.documents["tokens"].astype(np.int64), row_tokens)
    if kept.sum() < 2:
        raise UserError(
            f"{int(kept.sum())} of {int(wanted.sum())} conversations have a predicted token in "
            f"their first {row_tokens} tokens (--sequence-length); a store needs at least 2, one "
            "for each split. Raise --sequence-length, or add conversations."
        )
    if int(counts[kept].sum()) == int((lengths[kept] - 1).sum()):
        raise UserError(
            "every token of these conversations is predicted, also those of the prompts: the "
            "generation blocks of the chat template contain whole conversations. Choose another "
            "one with --template, or use --format text to learn whole texts."
        )
    documents = data.documents["hash"]
    threshold = writer.validation_threshold(documents[kept], fraction)
    data = writer.Tokenized(data.tokens, data.documents, data.loss_mask, kept)
    splits, files = writer.write_rows(data, threshold, folder, row_tokens, truncate=True)
    validation = documents < np.uint64(threshold)
    predicted = {
        "train": int(counts[kept & ~validation].sum()),
        "validation": int(counts[kept & validation].sum()),
    }
    truncated = int((data.documents["tokens"][kept] > row_tokens).sum())
    return splits, files, truncated, predicted, dropped
