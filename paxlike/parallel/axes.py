"""The dimension letters. A name such as `wq_DNH` spells its shape with them. Imports no JAX."""

from collections.abc import Sequence

from paxlike.config import ModelConfig

ALPHABET = {
    "A": "gradient-accumulation steps",
    "B": "batch",
    "T": "query time (positions of the sequence)",
    "S": "key time",
    "D": "model width",
    "F": "feed-forward width",
    "N": "query heads",
    "K": "key/value heads",
    "G": "query heads per key/value head, N // K",
    "H": "head dimension",
    "V": "vocabulary (stored rows)",
    "L": "layers",
    "W": "tokens of a sliding window",
    "P": "rows of the table of learned positions",
    "R": "adapter rank",
    "Q": "positions of a prefix",
    "I": "hidden units of a prefix's network",
    "E": "experts",
    "J": "experts that one token uses",
    "C": "rows of the experts, one for each token and each of its experts; or selected tokens",
    "M": "feed-forward width of an expert",
    "U": "feed-forward width of the shared experts together",
    "O": "places of routed tokens in a cache",
    "X": "hidden units of the predictor of routed tokens",
}

LOGICAL_AXES = {
    "B": "batch", "T": "length", "S": "length", "D": "embed", "F": "mlp", "N": "heads",
    "K": "heads", "H": "kv", "V": "vocab", "L": "layers", "E": "expert", "M": "expert_mlp",
    "U": "mlp", "X": "mlp",
}  # fmt: skip
"""T5X's standard logical axis of each dimension of a model."""


def logical_axes(letters: str) -> tuple[str, ...]:
    """Maps `DNH` to (`embed`, `heads`, `kv`). Raises KeyError for a letter without a T5X name."""
    return tuple(LOGICAL_AXES[letter] for letter in letters)


def as_letters(dims: str | Sequence[str]) -> str:
    """Converts T5X's names, such as `("batch", "length", "embed")`, to letters; keeps letters.

    `heads` means query heads. Raises ValueError naming a logical axis that has no letter.
    """
    if isinstance(dims, str):
        return dims
    letters = {name: letter for letter, name in reversed(LOGICAL_AXES.items())}
    if unknown := [name for name in dims if name not in letters]:
        raise ValueError(
            f"the logical axes {unknown} have no letter; use {', '.join(sorted(letters))}."
        )
    return "".join(letters[name] for name in dims)


def sizes(model: ModelConfig) -> dict[str, int]:
    """Returns letter -> size, for the letters that the model config determines."""
    return {
        "D": model.d_model,
        "F": model.d_ff,
        "N": model.heads,
        "K": model.kv_heads,
        "G": model.heads // model.kv_heads,
        "H": model.head_dim,
        "V": model.vocab_rows,
        "L": model.layers,
        "P": model.learned_positions,
        "W": model.sliding_window,
        "E": model.experts.count,
        "J": model.experts.top_k,
        "M": model.experts.d_ff,
        "U": model.experts.shared * model.experts.d_ff,
        "X": model.depths.predictor_width,
    }


def letters_of(name: str) -> str:
    """Returns the dimension letters at the end of a name: `DNH` for `blocks/wq_DNH`.

    Raises ValueError if the name has no such suffix.
    """
    _, underscore, suffix = name.rpartition("_")
    if not underscore or not suffix or any(letter not in ALPHABET for letter in suffix):
        raise ValueError(
            f"the name {name!r} must end in '_' and the letters of its dimensions, among "
            f"{''.join(ALPHABET)}."
        )
    return suffix


def is_stacked(name: str) -> bool:
    """Whether a checkpoint name belongs to a block, whose parameters have a leading layer axis."""
    return name.startswith("blocks")


def stored_letters(name: str) -> str:
    """Returns the letters of the stored array: `LDNH` for `blocks/wq_DNH`."""
    return "L" * is_stacked(name) + letters_of(name)
