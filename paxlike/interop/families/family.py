"""What a family of Hugging Face models is: how its config.json and tensors map to ours."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from paxlike.architecture.branch import WeightSpec
from paxlike.config import ModelConfig, UserError

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
}
"""The architecture of Llama."""
_OPTIONS = (
    "norm_placement", "norm_bias", "norm_offset", "feed_forward_bias", "attention_bias", "qk_norm",
    "query_scale", "attention_softcap", "logit_softcap", "embedding_scale", "learned_positions",
    "rope_fraction", "local_rope_theta",
)  # fmt: skip
"""Fields that have their default in a family whose `shape` does not list them."""
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
    """Field of ModelConfig -> its possible values; of `block`, those of all blocks. A folder is
    read with the first, unless `options` says otherwise. An empty tuple: any value."""
    supported: dict[str, tuple]
    """Key of config.json -> the values that are supported; it may also be absent or null."""
    epsilon: str = "rms_norm_eps"
    """The name of `norm_epsilon` in config.json."""
    names: dict[str, str] = dataclasses.field(default_factory=lambda: LLAMA_NAMES)
    """A block's weight -> its tensor below `layers`. `{expert}` stands for the number of an
    expert: each has a tensor of its own."""
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
    rope: bool = True
    """Whether config.json describes RoPE."""
    patterned: bool = False
    """Whether the layers can be of several kinds."""
    renamed: dict[str, str] = dataclasses.field(default_factory=dict)
    """The usual key of config.json -> this family's."""
    fits: Callable[[ModelConfig], bool] = lambda model: True
    """What `shape` cannot say about the models of the family."""
    inputs_first: bool = False
    """Whether matrices are [inputs, outputs]."""
    optional_prefix: str = ""
    """A prefix of all tensors that some files omit."""
    options: Callable[[dict], dict[str, Any]] = lambda hf_config: {}
    """Fields of ModelConfig that depend on config.json."""
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Ends of the names of buffers that older versions saved; they follow from config.json."""
    keys: Callable[[ModelConfig], dict[str, Any]] = lambda model: {}
    """Keys of config.json that only this family has."""

    def has(self, model: ModelConfig) -> bool:
        """Whether a model is one of the family."""
        defaults = {name: ModelConfig.__dataclass_fields__[name].default for name in _OPTIONS}
        fits = all(
            getattr(model, field) == default
            for field, default in defaults.items()
            if field not in self.shape
        )
        fits = fits and all(
            not values or getattr(model, field) in values
            for field, values in self.shape.items()
            if field != "block"
        )
        blocks = set(model.block_kinds)
        fits = fits and self.fits(model)
        return fits and blocks <= set(self.shape["block"]) and (self.patterned or len(blocks) == 1)


def required(hf_config: dict, key: str) -> Any:
    """A value of config.json. Raises UserError if there is none."""
    if hf_config.get(key) is None:
        raise UserError(f"config.json has no {key}.")
    return hf_config[key]


# ---- sliding windows -----------------------------------------------------------------------------


def layers_of(local: Iterable[bool], window: int, kind: str = "serial") -> dict[str, Any]:
    """Fields of ModelConfig for layers of which some are local: the shortest pattern.

    local: for every layer. window: of the local ones.
    """
    kinds = [f"{kind}_local" if one else kind for one in local]
    periods = (n for n in range(1, len(kinds) + 1) if all(map(str.__eq__, kinds, kinds[n:])))
    pattern = tuple(kinds[: next(periods)])
    where = {"block": pattern[0]} if len(pattern) == 1 else {"block": kind, "pattern": pattern}
    return {**where, "sliding_window": window if any("local" in one for one in kinds) else 0}


def layer_types(model: ModelConfig) -> list[str]:
    """`layer_types` of config.json."""
    kinds = (model.block_kinds[layer % len(model.block_kinds)] for layer in range(model.layers))
    return ["sliding_attention" if k.endswith("_local") else "full_attention" for k in kinds]


def is_local(hf_config: dict, default: Callable[[int], bool]) -> list[bool]:
    """Of every layer, by `layer_types` or `default(layer)`."""
    types = hf_config.get("layer_types")
    if types is None:
        return [default(layer) for layer in range(hf_config.get("num_hidden_layers") or 0)]
    known = {"sliding_attention": True, "full_attention": False}
    if unknown := sorted({kind for kind in types if kind not in known}):
        raise UserError(
            f"config.json has the layer_types {unknown}; {' and '.join(known)} are supported."
        )
    return [known[kind] for kind in types]


def no_sliding_window(hf_config: dict) -> bool:
    """Whether attention sees the whole context."""
    window = hf_config.get("sliding_window")
    used = hf_config.get("use_sliding_window", True)
    return not used or window is None or window >= hf_config.get("max_position_embeddings", 0)
