"""Quantization of the projections."""

import dataclasses
from typing import Literal

from paxlike.config.validation import positive, require, typed


@dataclasses.dataclass(frozen=True)
class QuantConfig:
    """BitNet's BitLinear in the projections of the blocks (arXiv 2310.11453; see `quant/`).

    Latent weights, gradients, optimizer state, embedding, head, residuals and attention products
    stay in high precision.
    """

    weights: Literal["none", "bitnet", "bitnet_b158"] = "none"
    """Weight values. bitnet: +1 and -1. bitnet_b158: +1, 0 and -1 (arXiv 2402.17764)."""
    variant: Literal["paper", "code"] = "paper"
    """paper: the sign of 0 is -1, 128 activation steps, layer norm. code (published later): the
    sign of 0 is 0, 127 steps, RMS norm.
    """
    groups: int = 1
    """Number of groups of heads and feed-forward columns, each with its own statistics. Part of the
    model: with a `model` axis that divides it, statistics need no communication. 1: one statistic
    per weight, by communication.
    """
    data_tiles: int = 1
    """Number of parts of d_model, each with its own statistics. If more than 1, mesh.data must
    divide it, and weights are gathered over `data` as packed bits.
    """
    statistics: Literal["auto", "tensor", "token"] = "auto"
    """Scope of an activation's scale in training. auto: tensor for the paper variant without
    groups, token otherwise. tensor requires communication. Generation always uses token.
    """
    nonnegative: bool = False
    """Shift the input of the projection before a non-linearity by its minimum, to 0 ... 127 (paper
    variant only).
    """

    def __post_init__(self):
        typed(self, "model.quant")
        positive(self, "model.quant", "groups", "data_tiles")
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        require(
            self.active or not changed,
            f"model.quant.{', '.join(changed)} is set, but model.quant.weights is none; choose "
            "bitnet or bitnet_b158.",
        )
        require(
            not self.nonnegative or self.variant == "paper",
            f"model.quant.nonnegative requires model.quant.variant paper, not {self.variant}.",
        )

    @property
    def active(self) -> bool:
        return self.weights != "none"

    @property
    def per_token(self) -> bool:
        """Whether each token has its own scale in training."""
        return self.statistics == "token" or (
            self.statistics == "auto" and (self.variant == "code" or self.groups > 1)
        )

    @property
    def bits(self) -> int:
        """Bits of a packed weight: 2 if it can also be 0."""
        return 1 if self.weights == "bitnet" and self.variant == "paper" else 2
