"""Model configuration: the decoder's architecture."""

import dataclasses
import math
from typing import Literal, get_args

from paxlike.config.experts import ExpertsConfig
from paxlike.config.quantization import QuantConfig
from paxlike.config.rope import RopeScalingConfig
from paxlike.config.validation import positive, require, suggest_divisors, typed


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
    block: Literal[
        "parallel", "parallel_two_norms", "serial",
        "parallel_local", "parallel_two_norms_local", "serial_local",
        "parallel_experts", "parallel_two_norms_experts", "serial_experts",
        "parallel_experts_local", "parallel_two_norms_experts_local", "serial_experts_local",
        "parallel_expert_heads", "parallel_two_norms_expert_heads", "serial_expert_heads",
    ] = "parallel"  # fmt: skip
    """parallel: x + attention(norm(x)) + feed_forward(norm(x)), one norm. parallel_two_norms: each
    branch has its own norm. serial: attention, then feed-forward, two norms. experts: a mixture of
    `experts` instead of the feed-forward. expert_heads: the same, and a mixture of attention heads
    instead of attention. local: attention sees `sliding_window` tokens.
    """
    pattern: tuple[str, ...] = ()
    """Block kinds, repeated over the layers, such as `serial_local serial`. The last repetition may
    be incomplete. Empty: only `block`."""
    norm: Literal["layer", "rms"] = "layer"
    """Both norms have a scale."""
    norm_placement: Literal["before", "after", "both"] = "before"
    """Norms of the branches' inputs, of their outputs, or of both (serial blocks only)."""
    norm_bias: bool = False
    """Biases of the layer norms."""
    norm_offset: bool = False
    """RMS norms multiply by 1 + scale, and scales start at 0."""
    feed_forward: Literal["swiglu", "geglu", "gelu", "gelu_exact", "relu", "relu2"] = "swiglu"
    """swiglu and geglu are gated (three matrices); the others have two. gelu and geglu use the tanh
    approximation, gelu_exact the error function. relu2 is relu squared."""
    feed_forward_bias: bool = False
    """Biases of the feed-forward projections."""
    attention_bias: Literal["none", "qkv", "qkvo"] = "none"
    """Biases of the attention projections. qkv: queries, keys and values. qkvo: also the output."""
    qk_norm: Literal["none", "head", "heads", "layer"] = "none"
    """Norm of queries and keys before RoPE, with a learned scale. head: RMS norm of every head, one
    scale for all. heads: RMS norm of all heads together. layer: layer norm of every head.
    """
    sliding_window: int = 0
    """Tokens that attention sees in local blocks: a token and those before it."""
    query_scale: float = 0.0
    """Factor of attention's scores. 0: 1/sqrt(head_dim)."""
    attention_softcap: float = 0.0
    """Scores become softcap * tanh(scores / softcap). 0: unchanged."""
    head: Literal["tied", "untied"] = "tied"
    """tied: logits use the embedding. untied: logits use their own matrix."""
    logit_scale: float = 0.0
    """Factor of the logits. 0: 1/sqrt(d_model) with a tied head, 1 with an untied one."""
    logit_softcap: float = 0.0
    """Logits become softcap * tanh(logits / softcap). 0: unchanged."""
    embedding_scale: float = 1.0
    """Factor of the embedding at the input."""
    learned_positions: int = 0
    """Rows of a learned table of positions, which is added to the embedding and replaces RoPE; no
    sequence may be longer. 0: RoPE.
    """
    rope_theta: float = 10_000.0
    local_rope_theta: float = 0.0
    """RoPE's theta in local blocks, without `rope_scaling`. 0: as in the others."""
    rope_fraction: float = 1.0
    """Part of each head's dimensions that is rotated."""
    rope_scaling: RopeScalingConfig = dataclasses.field(default_factory=RopeScalingConfig)
    norm_epsilon: float = 1e-6
    attention: Literal["auto", "blocked", "reference", "xla", "cudnn", "splash"] = "auto"
    """auto: splash attention on TPUs, cuDNN flash attention on NVIDIA GPUs (unless there is a
    softcap), blocked otherwise."""
    remat: Literal["none", "full", "attention", "palm", "dots"] = "none"
    """What the backward pass recomputes instead of saving (see `nn/remat.py`)."""
    quant: QuantConfig = dataclasses.field(default_factory=QuantConfig)
    experts: ExpertsConfig = dataclasses.field(default_factory=ExpertsConfig)

    def __post_init__(self):
        typed(self, "model")
        positive(
            self, "model", "layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff",
            "vocab_size", "vocab_multiple", "rope_theta", "norm_epsilon", "embedding_scale",
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
        require(
            not self.norm_offset or self.norm == "rms",
            f"model.norm_offset is set, but model.norm is {self.norm}; set model.norm to rms.",
        )
        self._check_blocks()
        self._check_experts()
        self._check_numbers()
        self._check_quant()

    def _check_blocks(self) -> None:
        kinds = get_args(ModelConfig.__dataclass_fields__["block"].type)
        require(
            all(kind in kinds for kind in self.pattern),
            f"model.pattern is {' '.join(self.pattern)}; its blocks must be among "
            f"{', '.join(kinds)}.",
        )
        require(
            self.layers >= len(self.block_kinds),
            f"model.layers {self.layers} is less than the {len(self.pattern)} blocks of "
            "model.pattern; change one of them.",
        )
        require(
            self.norm_placement == "before"
            or (all("serial" in kind for kind in self.block_kinds) and not self.quant.active),
            f"model.norm_placement is {self.norm_placement}, which requires serial blocks without "
            f"quantization; the blocks are {' '.join(self.block_kinds)}, and model.quant.weights "
            f"is {self.quant.weights}.",
        )
        local = any(kind.endswith("_local") for kind in self.block_kinds)
        require(
            local == (self.sliding_window > 0),
            f"model.sliding_window is {self.sliding_window}, and the blocks are "
            f"{' '.join(self.block_kinds)}; local blocks require a window above 0, and only they "
            "have one.",
        )
        require(
            local or not self.local_rope_theta,
            f"model.local_rope_theta is {self.local_rope_theta}, but no block is local.",
        )

    def _check_experts(self) -> None:
        blocks = any("expert" in kind for kind in self.block_kinds)
        require(
            blocks == self.experts.active,
            f"model.experts.count is {self.experts.count}, and the blocks are "
            f"{' '.join(self.block_kinds)}; blocks with expert in their name require a count "
            "above 0, and only they have experts.",
        )
        heads = any(kind.endswith("expert_heads") for kind in self.block_kinds)
        require(
            not heads
            or (
                self.attention_bias == "none"
                and self.qk_norm == "none"
                and not self.experts.bias_step
            ),
            f"model.attention_bias is {self.attention_bias}, model.qk_norm is {self.qk_norm} and "
            f"model.experts.bias_step is {self.experts.bias_step}; blocks with expert_heads have "
            "none of them: remove them.",
        )
        require(
            not blocks or (self.gated and not self.feed_forward_bias),
            f"model.feed_forward is {self.feed_forward} and model.feed_forward_bias is "
            f"{self.feed_forward_bias}; experts are gated and have no biases: choose swiglu or "
            "geglu, without biases.",
        )
        require(
            not blocks or not self.quant.active,
            f"model.quant.weights is {self.quant.weights}, but blocks with experts are not "
            "quantized; set it to none.",
        )

    def _check_numbers(self) -> None:
        for field in (
            "query_scale", "attention_softcap", "logit_scale", "logit_softcap", "learned_positions",
            "local_rope_theta", "sliding_window",
        ):  # fmt: skip
            value = getattr(self, field)
            require(value >= 0, f"model.{field} is {value}; it must be 0 or more.")
        rope = self.rope_scaling.kind != "none" or self.rope_fraction != 1 or self.local_rope_theta
        require(
            not self.learned_positions or not rope,
            f"model.learned_positions is {self.learned_positions}, which replaces RoPE; remove "
            "model.rope_scaling, model.rope_fraction and model.local_rope_theta.",
        )

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
    def logits_factor(self) -> float:
        """`logit_scale` with its default resolved."""
        return self.logit_scale or (self.d_model**-0.5 if self.head == "tied" else 1.0)

    @property
    def vocab_rows(self) -> int:
        """Stored embedding rows: `vocab_size` rounded up to a multiple of `vocab_multiple`."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def gated(self) -> bool:
        return self.feed_forward in ("swiglu", "geglu")
