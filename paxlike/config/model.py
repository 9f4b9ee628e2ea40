"""The model's knobs: shape, quantization."""

import dataclasses
from typing import Literal

from paxlike.config.check import divisors, positive, require, typed


@dataclasses.dataclass(frozen=True)
class QuantConfig:
    """BitNet's BitLinear in the projections of the blocks (arXiv 2310.11453; see `quant/`).

    Latent weights, gradients and optimizer state, embedding, head, residuals and attention's products stay in high precision.
    """

    weights: Literal["none", "bitnet", "bitnet_b158"] = "none"
    """bitnet: +1 and -1. bitnet_b158: +1, 0 and -1 (arXiv 2402.17764)."""
    variant: Literal["paper", "code"] = "paper"
    """paper: the sign of 0 is -1, 128 steps of activations, layer norm. code, as published later: 0, 127 steps, RMS norm."""
    groups: int = 1
    """Parts of heads and feed-forward columns with statistics of their own. They belong to the model: on any mesh whose `model` axis
    divides them no device asks another for a statistic. 1: one statistic for a whole weight, by communication."""
    data_tiles: int = 1
    """Parts of d_model with statistics of their own. If more than 1, `data` must divide them, and weights are gathered over `data` as
    packed bits."""
    statistics: Literal["auto", "tensor", "token"] = "auto"
    """What an activation's scale is taken over in training. auto: tensor in the ungrouped paper variant, token otherwise; tensor asks
    the other devices. Generation always takes one per token."""
    nonnegative: bool = False
    """The input of the projection before a non-linearity is shifted by its minimum to 0 ... 127 (paper variant only)."""

    def __post_init__(self):
        typed(self, "model.quant")
        positive(self, "model.quant", "groups", "data_tiles")
        changed = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        require(
            self.active or not changed,
            f"model.quant.{', '.join(changed)} is set, but model.quant.weights is none; choose bitnet or bitnet_b158.",
        )
        require(
            not self.nonnegative or self.variant == "paper",
            f"model.quant.nonnegative is of the paper's variant; model.quant.variant is {self.variant}: set it to paper.",
        )

    @property
    def active(self) -> bool:
        return self.weights != "none"

    @property
    def per_token(self) -> bool:
        """Whether every token has a scale of its own in training."""
        return self.statistics == "token" or (self.statistics == "auto" and (self.variant == "code" or self.groups > 1))

    @property
    def bits(self) -> int:
        """Bits of a packed weight: 2 where it can also be 0."""
        return 1 if self.weights == "bitnet" and self.variant == "paper" else 2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The decoder's shape. The defaults of the words are PaLM's (arXiv 2204.02311, section 2)."""

    layers: int = 4
    d_model: int = 256
    heads: int = 4
    """Query heads."""
    kv_heads: int = 1
    """Key/value heads: 1 is multi-query, `heads` is multi-head, between them grouped-query attention."""
    head_dim: int = 64
    d_ff: int = 1024
    vocab_size: int = 512
    """Tokens that can be predicted. Must be at least the tokenizer's vocabulary."""
    vocab_multiple: int = 128
    """The embedding is stored with this many rows times a whole number, so that `mesh.model` divides it.
    The rows beyond `vocab_size` are never predicted and are not counted as parameters."""
    block: Literal["parallel", "serial"] = "parallel"
    """parallel: x + attention(norm(x)) + feed_forward(norm(x)), one norm. serial: one after the other, two norms."""
    norm: Literal["layer", "rms"] = "layer"
    """Both have a scale only, no bias."""
    feed_forward: Literal["swiglu", "gelu", "relu", "relu2"] = "swiglu"
    """swiglu is gated (three matrices); the others have two. relu2 is the square of relu."""
    head: Literal["tied", "untied"] = "tied"
    """tied: the logits come from the embedding, scaled by 1/sqrt(d_model). untied: from a matrix of their own."""
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    attention: Literal["auto", "blocked", "reference", "xla", "cudnn", "splash"] = "auto"
    """auto: cuDNN flash attention on NVIDIA GPUs, splash attention on TPU, blocks of queries elsewhere."""
    remat: Literal["none", "full", "attention", "palm", "dots"] = "none"
    """What the backward pass computes again instead of keeping (see `nn/remat.py`)."""
    quant: QuantConfig = dataclasses.field(default_factory=QuantConfig)

    def __post_init__(self):
        typed(self, "model")
        positive(
            self, "model", "layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff", "vocab_size", "vocab_multiple",
            "rope_theta", "norm_epsilon",
        )  # fmt: skip
        require(
            self.heads % self.kv_heads == 0,
            f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}; every key/value head serves "
            f"the same number of query heads: choose kv_heads among {divisors(self.heads)}.",
        )
        require(
            self.head_dim % 2 == 0,
            f"model.head_dim {self.head_dim} is odd; rotary embeddings turn pairs of dimensions: choose an even one.",
        )
        self._check_quant()

    def _check_quant(self) -> None:
        groups, tiles = self.quant.groups, self.quant.data_tiles
        for field, size in (("heads", self.heads), ("d_ff", self.d_ff)):
            require(
                size % groups == 0,
                f"model.quant.groups {groups} does not divide model.{field} {size}; choose among "
                f"{[n for n in divisors(self.heads) if self.d_ff % n == 0]}.",
            )
        # Key/value weights with fewer heads than groups are cut along d_model.
        parts = tiles if self.kv_heads % groups == 0 else tiles * groups
        require(
            self.d_model % parts == 0,
            f"model.quant cuts model.d_model {self.d_model} into {parts} parts (data_tiles {tiles}"
            + (f" x groups {groups}" if parts > tiles else "")
            + "), which do not divide it; choose other numbers.",
        )

    @property
    def vocab_rows(self) -> int:
        """Rows of the stored embedding: `vocab_size` rounded up to a multiple of `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def gated(self) -> bool:
        return self.feed_forward == "swiglu"
