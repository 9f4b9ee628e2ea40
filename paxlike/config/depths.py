"""Mixture of depths: blocks that only a part of the tokens goes through."""

import dataclasses
import math

from paxlike.config.validation import ConfigError, positive, require, typed

ROUTED = "_routed"
"""How the name of such a block ends in `model.pattern`."""


@dataclasses.dataclass(frozen=True)
class DepthsConfig:
    """The blocks whose kind ends in `_routed` (arXiv 2404.02258; see docs/depths.md).

    In training, a router selects a fixed part of the tokens of each document for such a block; the
    others pass it unchanged. When text is generated, later tokens are unknown, and a predictor
    decides about each token by itself.
    """

    capacity: float = 0.125
    """The part of the tokens that goes through a routed block, in training."""
    predictor_width: int = 64
    """Hidden units of the predictor's network."""
    predictor_loss: float = 1.0
    """Weight of the predictor's loss. Its gradient reaches only the predictor."""

    def __post_init__(self):
        typed(self, "model.depths")
        require(
            0 < self.capacity <= 1,
            f"model.depths.capacity is {self.capacity}; it must be above 0 and at most 1 (1: every "
            "token).",
        )
        positive(self, "model.depths", "predictor_width")
        require(
            self.predictor_loss >= 0,
            f"model.depths.predictor_loss is {self.predictor_loss}; it must be 0 or more.",
        )

    def tokens(self, length: int) -> int:
        """The tokens of a document of this length that a routed block selects in training."""
        # A product that is an integer in decimals may be just below it in binary: 0.29 * 100.
        return math.floor(self.capacity * length + 1e-9 * length)

    def check_length(self, length: int) -> None:
        """Raises ConfigError if a sequence of this length has no routed token."""
        if not self.tokens(length):
            raise ConfigError(
                f"model.depths.capacity {self.capacity} of a sequence of {length} tokens "
                "(data.sequence_length) is less than one token; increase one of them."
            )
