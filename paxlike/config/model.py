"""Model configuration: shape and quantization."""

import dataclasses
import math
from typing import Literal

from paxlike.config.validation import positive, require, suggest_divisors, typed


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


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The decoder's architecture. The default variants are PaLM's (arXiv 2204.02311, section 2)."""

    layers: int = 4
    d_model: int = 256
    heads: int = 4
    """Query heads."""
    kv_heads: int = 1
    """Key/value heads. 1: multi-query, `heads`: multi-head, in between: grouped-query attention."""
    head_dim: int = 64
    d_ff: int = 1024
    vocab_size: int = 512
    """Number of tokens, at least the tokenizer's vocabulary."""
    vocab_multiple: int = 128
    """The stored embedding is padded to a multiple of this many rows, so that `mesh.model` divides
    it. Rows beyond `vocab_size` are never predicted and are not counted as parameters.
    """
    block: Literal["parallel", "serial"] = "parallel"
    """parallel: x + attention(norm(x)) + feed_forward(norm(x)), one norm. serial: attention, then
    feed-forward, two norms.
    """
    pattern: tuple[str, ...] = ()
    """Block kinds, repeated over the layers, such as `parallel serial`. Empty: only `block`."""
    norm: Literal["layer", "rms"] = "layer"
    """Both norms have a scale and no bias."""
    feed_forward: Literal["swiglu", "gelu", "relu", "relu2"] = "swiglu"
    """swiglu is gated (three matrices); the others have two. relu2 is relu squared."""
    attention_bias: Literal["none", "qkv", "qkvo"] = "none"
    """Biases of the attention projections. qkv: queries, keys and values. qkvo: also the output."""
    qk_norm: bool = False
    """RMS norm of every query and key head, with a learned scale, before RoPE."""
    head: Literal["tied", "untied"] = "tied"
    """tied: logits use the embedding, scaled by 1/sqrt(d_model). untied: logits use their own
    matrix.
    """
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    attention: Literal["auto", "blocked", "reference", "xla", "cudnn", "splash"] = "auto"
    """auto: cuDNN flash attention on NVIDIA GPUs, splash attention on TPUs, blocked otherwise."""
    remat: Literal["none", "full", "attention", "palm", "dots"] = "none"
    """What the backward pass recomputes instead of saving (see `nn/remat.py`)."""
    quant: QuantConfig = dataclasses.field(default_factory=QuantConfig)

    def __post_init__(self):
        typed(self, "model")
        positive(
            self, "model", "layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff",
            "vocab_size", "vocab_multiple", "rope_theta", "norm_epsilon",
        )  # fmt: skip
        require(
            self.heads % self.kv_heads == 0,
            f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}; choose "
            f"kv_heads among {suggest_divisors(self.heads, self.kv_heads)}.",
        )
        require(
            self.head_dim % 2 == 0,
            f"model.head_dim {self.head_dim} is odd; rotary embeddings require an even head_dim.",
        )
        kinds = ("parallel", "serial")
        require(
            all(kind in kinds for kind in self.pattern),
            f"model.pattern is {' '.join(self.pattern)}; its blocks must be among "
            f"{', '.join(kinds)}.",
        )
        require(
            self.layers % len(self.block_kinds) == 0,
            f"model.layers {self.layers} is not a multiple of the {len(self.pattern)} blocks of "
            "model.pattern; change one of them.",
        )
        self._check_quant()

    def _check_quant(self) -> None:
        groups, tiles = self.quant.groups, self.quant.data_tiles
        for field, size in (("heads", self.heads), ("d_ff", self.d_ff)):
            require(
                size % groups == 0,
                f"model.quant.groups {groups} does not divide model.{field} {size}; choose among "
                f"{suggest_divisors(math.gcd(self.heads, self.d_ff), groups)}.",
            )
        # Key/value weights with fewer heads than groups are split along d_model.
        parts = tiles if self.kv_heads % groups == 0 else tiles * groups
        require(
            self.d_model % parts == 0,
            f"model.quant splits model.d_model {self.d_model} into {parts} parts (data_tiles "
            f"{tiles}"
            + (f" x groups {groups}" if parts > tiles else "")
            + "), which does not divide it; change model.quant or model.d_model.",
        )

    @property
    def block_kinds(self) -> tuple[str, ...]:
        """The kinds of blocks in one period of the pattern."""
        return self.pattern or (self.block,)

    @property
    def vocab_rows(self) -> int:
        """Stored embedding rows: `vocab_size` rounded up to a multiple of `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def gated(self) -> bool:
        return self.feed_forward == "swiglu"
