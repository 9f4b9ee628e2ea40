"""Mixture of experts: feed-forward networks of which each token uses a few."""

import dataclasses
from typing import Literal

from paxlike.config.validation import positive, require, typed


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """The experts of blocks whose kind has `experts` in its name (see docs/experts.md).

    A router gives each token a logit for each of N experts; the token goes through the k experts
    with the largest scores and adds up their outputs, weighted by the scores. No token is dropped.
    """

    count: int = 0
    """N, the number of experts in a layer. 0: the model has none."""
    top_k: int = 2
    """k, the experts that each token uses."""
    d_ff: int = 1024
    """Feed-forward width of an expert."""
    shared: int = 0
    """Experts that every token uses, in addition and with weight 1 (DeepSeekMoE, arXiv
    2401.06066)."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """How a logit becomes a score. softmax: Mixtral, JetMoE, Qwen 3. sigmoid: DeepSeek-V3."""
    renormalize: bool = True
    """Divide the k scores by their sum. With softmax, this equals a softmax over the k logits."""
    scaling: float = 1.0
    """Factor of the k scores (DeepSeek's routed_scaling_factor)."""
    balance_loss: float = 0.01
    """Weight of the load-balancing loss (Switch Transformer, arXiv 2101.03961, eq. 4)."""
    z_loss: float = 0.001
    """Weight of the router's z-loss (ST-MoE, arXiv 2202.08906, eq. 5)."""
    bias_step: float = 0.0
    """Each layer has a bias for each expert, which is added to the scores to select experts, and
    moves by this much per step toward an equal load (arXiv 2408.15664). 0: no bias."""
    output_bias: bool = False
    """Add a bias to the sum of the experts' outputs (JetMoE)."""

    def __post_init__(self):
        typed(self, "model.experts")
        require(
            self.count >= 0, f"model.experts.count is {self.count}; it must be 0 or more (0: none)."
        )
        positive(self, "model.experts", "top_k", "d_ff", "scaling")
        for field in ("shared", "balance_loss", "z_loss", "bias_step"):
            value = getattr(self, field)
            require(value >= 0, f"model.experts.{field} is {value}; it must be 0 or more.")
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        require(
            self.active or not changed,
            f"model.experts.{', '.join(changed)} is set, but model.experts.count is 0; set it to "
            "the number of experts.",
        )
        require(
            not self.active or self.top_k <= self.count,
            f"model.experts.top_k is {self.top_k}, above model.experts.count {self.count}; choose "
            f"at most {self.count}.",
        )
        require(
            not (self.active and self.renormalize and self.top_k == 1),
            "model.experts.top_k is 1 and model.experts.renormalize is set: the one score would be "
            "1 for every token, and the router would learn nothing from the loss; unset "
            "renormalize.",
        )

    @property
    def active(self) -> bool:
        return self.count > 0
