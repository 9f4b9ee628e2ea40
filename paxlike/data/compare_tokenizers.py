"""Whether two tokenizers give texts the same ids."""

from paxlike.data.tokenizer import Tokenizer

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n    return x + 1  # 12345\n",
    "na\u00efve caf\u00e9 \u2013 \u201cquotes\u201d, \u6f22\u5b57, \U0001f600\n",
    "  two  spaces\tand a tab, </s> <unk> <|endoftext|>",
)


def tokenizer_difference(old: Tokenizer, new: Tokenizer) -> str:
    """What differs between two tokenizers, on a few texts; empty if nothing does."""
    for text in TEXTS:
        before, after = old.encode(text).tolist(), new.encode(text).tolist()
        if before != after:
            n = next(
                (n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b),
                min(len(before), len(after)),
            )
            return f"{text[:24]!r}... has the ids {after[n : n + 4]} instead of {before[n : n + 4]}"
    for field, what in (("eod", "end-of-document id"), ("prefix", "ids that begin a text")):
        if getattr(old, field) != getattr(new, field):
            return f"its {what} is {getattr(new, field)} instead of {getattr(old, field)}"
    return ""
