"""Scaling of rotary position embeddings."""

import dataclasses
from typing import Literal

from paxlike.config.validation import positive, require, typed


@dataclasses.dataclass(frozen=True)
class RopeScalingConfig:
    """Scaling of the rotary frequencies for contexts longer than those of the first training (see
    `nn/rotary.py`).
    """

    kind: Literal["none", "linear", "llama3", "yarn"] = "none"
    """linear: all frequencies. llama3: low ones (Llama 3.1 to 3.3). yarn: by a ramp over the
    dimensions, and larger logits (arXiv 2309.00071).
    """
    factor: float = 1.0
    """Divisor of the scaled frequencies."""
    original_length: int = 8192
    """Context of the first training (llama3, yarn)."""
    low_frequency_factor: float = 1.0
    """llama3: fewer rotations in the original context are divided by the whole factor."""
    high_frequency_factor: float = 4.0
    """llama3: more rotations in the original context are kept."""
    beta_fast: float = 32.0
    """yarn: dimensions with more rotations in the original context are kept."""
    beta_slow: float = 1.0
    """yarn: dimensions with fewer rotations are divided by the whole factor."""
    attention_factor: float = 0.0
    """yarn: factor of queries and keys. 0: 0.1 ln(factor) + 1."""
    truncate: bool = True
    """yarn: round the ends of the ramp to whole dimensions."""

    def __post_init__(self):
        typed(self, "model.rope_scaling")
        positive(
            self, "model.rope_scaling", "factor", "original_length", "low_frequency_factor",
            "high_frequency_factor", "beta_fast", "beta_slow",
        )  # fmt: skip
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        require(
            self.kind != "none" or not changed,
            f"model.rope_scaling.{', '.join(changed)} is set, but model.rope_scaling.kind is none; "
            "choose linear, llama3 or yarn.",
        )
        for low, high in (
            ("low_frequency_factor", "high_frequency_factor"), ("beta_slow", "beta_fast")
        ):  # fmt: skip
            require(
                getattr(self, low) < getattr(self, high),
                f"model.rope_scaling.{low} {getattr(self, low)} must be below {high} "
                f"{getattr(self, high)}.",
            )
        require(
            self.attention_factor >= 0,
            f"model.rope_scaling.attention_factor is {self.attention_factor}; it must be above 0, "
            "or 0 for the default.",
        )
