"""What a family of Hugging Face models is: how its config.json and tensors map to ours."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from paxlike.architecture.branch import WeightSpec
from paxlike.config import ModelConfig

LLAMA_NAMES = {
    "scale_D": "input_layernorm.weight",
    "wq_DNH": "self_attn.q_proj.weight",
    "wk_DKH": "self_attn.k_proj.weight",
    "wv_DKH": "self_attn.v_proj.weight",
    "wo_NHD": "self_attn.o_proj.weight",
    "bq_NH": "self_attn.q_proj.bias",
    "bk_KH": "self_attn.k_proj.bias",
    "bv_KH": "self_attn.v_proj.bias",
    "bo_D": "self_attn.o_proj.bias",
    "q_scale_H": "self_attn.q_norm.weight",
    "k_scale_H": "self_attn.k_norm.weight",
    "feed_forward_scale_D": "post_attention_layernorm.weight",
    "wgate_DF": "mlp.gate_proj.weight",
    "wup_DF": "mlp.up_proj.weight",
    "wdown_FD": "mlp.down_proj.weight",
}
"""A block's weight -> its tensor below `model.layers.N`, as Llama and its descendants name it."""
SERIAL_RMS: dict[str, tuple] = {
    "block": ("serial",),
    "norm": ("rms",),
    "feed_forward": ("swiglu",),
    "attention_bias": ("none",),
    "qk_norm": (False,),
    "rope_fraction": (1.0,),
    "norm_bias": (False,),
    "feed_forward_bias": (False,),
}
"""The architecture of Llama."""
LLAMA_OUTER = {
    "embedding_VD": "model.embed_tokens.weight",
    "scale_D": "model.norm.weight",
    "head_DV": "lm_head.weight",
}
"""A weight outside of the blocks -> its tensor."""
Array = np.ndarray


class Conversion(NamedTuple):
    """How a weight and a tensor correspond."""

    shape: tuple[int, ...]
    """Of the tensor."""
    to_hf: Callable[[Array], Array]
    """The tensor; where several weights share it, their parts, which are joined along `axis`."""
    from_hf: Callable[[Array], Array]
    """The weight, from the whole tensor."""
    axis: int = 0


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models. A new one is a new file and a row in `families/__init__.py`."""

    model_type: str
    """In config.json."""
    architecture: str
    """The class in transformers."""
    shape: dict[str, tuple]
    """Field of ModelConfig -> its possible values. A folder is read with the first, unless
    `options` says otherwise."""
    supported: dict[str, tuple]
    """Key of config.json -> the values that are supported; it may also be absent or null."""
    epsilon: str = "rms_norm_eps"
    """The name of `norm_epsilon` in config.json."""
    names: dict[str, str] = dataclasses.field(default_factory=lambda: LLAMA_NAMES)
    """A block's weight -> its tensor below `layers`."""
    layers: str = "model.layers"
    outer: dict[str, str] = dataclasses.field(default_factory=lambda: LLAMA_OUTER)
    """A weight outside of the blocks -> its tensor."""
    convert: Callable[[WeightSpec, ModelConfig], Conversion | None] = lambda spec, model: None
    """The correspondence of a weight, if it is not the usual one."""
    interleaved: bool = False
    """Whether RoPE pairs the dimensions 2i and 2i + 1, rather than i and i + H/2."""
    scaled_logits: bool = False
    """Whether config.json has a `logit_scale`. Otherwise logits are not scaled."""
    tied: bool = False
    """Whether the head is tied if config.json does not say it."""
    options: Callable[[dict], dict[str, Any]] = lambda hf_config: {}
    """Fields of ModelConfig that depend on config.json."""
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Ends of the names of buffers that older versions saved; they follow from config.json."""
    keys: Callable[[ModelConfig], dict[str, Any]] = lambda model: {}
    """Keys of config.json that only this family has."""

    def has(self, model: ModelConfig) -> bool:
        """Whether a model is one of the family."""
        return not model.pattern and all(
            getattr(model, field) in values for field, values in self.shape.items()
        )


def no_sliding_window(hf_config: dict) -> bool:
    """Whether attention sees the whole context."""
    window = hf_config.get("sliding_window")
    used = hf_config.get("use_sliding_window", True)
    return not used or window is None or window >= hf_config.get("max_position_embeddings", 0)
