"""`paxlike data show`: samples of a token store as text, with the predicted tokens highlighted."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from paxlike.config import UserError
from paxlike.data.huggingface_tokenizer import HuggingFaceTokenizer
from paxlike.data.manifest import Split
from paxlike.data.store import Store
from paxlike.data.tokenizer import Tokenizer

LONGEST = 2048
"""Tokens of a sample that are shown."""
_SLAB = 1 << 20


class Sample(NamedTuple):
    """A document."""

    ids: np.ndarray
    predicted: np.ndarray
    """bool: whether the token has a loss. A document that is packed whole has none on its first."""


def samples(store: Store, split: Split, start: int) -> Iterator[Sample]:
    """The documents of a split from number `start` on, in the order in which they are stored."""
    find = _segments if store.manifest.packing == "whole" else _documents
    yield from find(store, split, start)


def _documents(store: Store, split: Split, start: int) -> Iterator[Sample]:
    tokens, mask = store.tokens(split), store.loss_mask(split)
    first = seen = 0
    for begin in range(0, len(tokens), _SLAB):
        ends = np.flatnonzero(tokens[begin : begin + _SLAB] == store.manifest.eod) + begin + 1
        if seen + len(ends) <= start:  # none of these is shown
            first, seen = (int(ends[-1]) if len(ends) else first), seen + len(ends)
            continue
        for end in ends.tolist():
            if seen >= start:
                ids = np.asarray(tokens[first:end])
                known = np.ones(len(ids), bool) if mask is None else mask[first:end] > 0
                yield Sample(ids, known)
            first, seen = end, seen + 1
    if first < len(tokens) and seen >= start:
        yield Sample(np.asarray(tokens[first:]), np.ones(len(tokens) - first, bool))


def _segments(store: Store, split: Split, start: int) -> Iterator[Sample]:
    tokens, segments, mask = store.tokens(split), store.segments(split), store.loss_mask(split)
    seen = 0
    for row in range(len(tokens)):
        count = int(segments[row].max())
        for number in range(max(1, start - seen + 1), count + 1):
            here = segments[row] == number
            known = np.ones(int(here.sum()), bool) if mask is None else mask[row][here] > 0
            known[0] = False
            yield Sample(np.asarray(tokens[row][here]), known)
        seen += count


def stretches(sample: Sample, tokenizer: Tokenizer) -> Iterator[tuple[str, str, bool]]:
    """(text, kind, whether it is predicted) of each stretch of a sample; kind: text or special."""
    names = {tokenizer.eod: "<end of document>"}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        names |= {id_: text for text, id_, *_ in tokenizer.special_tokens}
    ids, before = sample.ids.tolist(), ""
    keys = list(zip([id_ in names for id_ in ids], sample.predicted.tolist(), strict=True))
    place = 0
    for (special, predicted), group in itertools.groupby(keys):
        begin, place = place, place + len(list(group))
        if special:
            yield "".join(names[id_] for id_ in ids[begin:place]), "special", predicted
        else:
            # Decoded after what comes before: a tokenizer may begin a text differently.
            whole = tokenizer.decode(ids[:place])
            yield whole[len(before) :], "text", predicted
            before = whole


def rendered(sample: Sample, tokenizer: Tokenizer, masked: bool, color: bool) -> Text:
    """The sample; with color, predicted text is green, without it is in ⟦ ⟧."""
    text = Text()
    short = Sample(sample.ids[:LONGEST], sample.predicted[:LONGEST])
    groups = itertools.groupby(stretches(short, tokenizer), lambda stretch: stretch[2])
    for predicted, group in groups:
        marked = masked and predicted
        if marked and not color:
            text.append("⟦")
        for part, kind, _ in group:
            style = "bold green" if marked else ""
            text.append(part, f"{style} underline".strip() if kind == "special" else style)
        if marked and not color:
            text.append("⟧")
    if len(sample.ids) > LONGEST:
        text.append(f" … and {len(sample.ids) - LONGEST:,} more tokens", "dim")
    return text


def show(store: Store, split: Split, start: int, count: int, console: Console) -> None:
    """Prints `count` documents. Raises UserError if the split has no document `start`."""
    documents = store.manifest.splits[split].documents
    if not 0 <= start < documents:
        raise UserError(
            f"--start is {start}; the {split} split of {store.folder} has documents 0 to "
            f"{documents - 1}."
        )
    masked = store.loss_mask(split) is not None
    color = console.is_terminal and not console.no_color
    legend = "green" if color else "in ⟦ ⟧"
    note = f"the predicted ones are {legend}" if masked else "all are predicted"
    title = f"{store.folder}: {split}, {documents:,} documents; tokens: {note}"
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    found = itertools.islice(samples(store, split, start), count)
    for number, sample in enumerate(found, start):
        learned = f", {int(sample.predicted.sum()):,} predicted" if masked else ""
        line = Text(f"\n── {number}: {len(sample.ids):,} tokens{learned} ──", "dim")
        console.print(line, soft_wrap=True)
        console.print(rendered(sample, store.tokenizer, masked, color), soft_wrap=True)
