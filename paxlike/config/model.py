"""Model configuration: shape and quantization."""

import dataclasses
import math
from typing import Literal, get_args

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
    block: Literal["parallel", "parallel_two_norms", "serial"] = "parallel"
    """parallel: x + attention(norm(x)) + feed_forward(norm(x)), one norm. parallel_two_norms: each
    branch has its own norm. serial: attention, then feed-forward, two norms.
    """
    pattern: tuple[str, ...] = ()
    """Block kinds, repeated over the layers, such as `parallel serial`. Empty: only `block`."""
    norm: Literal["layer", "rms"] = "layer"
    """Both norms have a scale."""
    norm_bias: bool = False
    """Biases of the layer norms."""
    feed_forward: Literal["swiglu", "geglu", "gelu", "gelu_exact", "relu", "relu2"] = "swiglu"
    """swiglu and geglu are gated (three matrices); the others have two. gelu and geglu use the tanh
    approximation, gelu_exact the error function. relu2 is relu squared."""
    feed_forward_bias: bool = False
    """Biases of the feed-forward projections."""
    attention_bias: Literal["none", "qkv", "qkvo"] = "none"
    """Biases of the attention projections. qkv: queries, keys and values. qkvo: also the output."""
    qk_norm: bool = False
    """RMS norm of every query and key head, with a learned scale, before RoPE."""
    head: Literal["tied", "untied"] = "tied"
    """tied: logits use the embedding, scaled by 1/sqrt(d_model). untied: logits use their own
    matrix.
    """
    rope_theta: float = 10_000.0
    rope_fraction: float = 1.0
    """Part of each head's dimensions that is rotated."""
    rope_scaling: RopeScalingConfig = dataclasses.field(default_factory=RopeScalingConfig)
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
        require(
            0 < self.rope_fraction <= 1 and self.head_dim * self.rope_fraction >= 2,
            f"model.rope_fraction is {self.rope_fraction}; it must be above 0 and at most 1, and "
            f"rotate at least 2 of the {self.head_dim} dimensions of a head.",
        )
        require(
            not self.norm_bias or self.norm == "layer",
            f"model.norm_bias is set, but model.norm is {self.norm}, which has no bias; set "
            "model.norm to layer.",
        )
        kinds = get_args(ModelConfig.__dataclass_fields__["block"].type)
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
        return self.feed_forward in ("swiglu", "geglu")
