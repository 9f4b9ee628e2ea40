"""Cohere's Command models: CohereForCausalLM is the PaLM decoder."""

from typing import Any

from paxlike.architecture.branch import WeightSpec
from paxlike.config import ModelConfig
from paxlike.interop.families.family import LLAMA_NAMES, SERIAL_RMS, Conversion, Family


def _convert(spec: WeightSpec, model: ModelConfig) -> Conversion | None:
    """Scales of query and key heads: [heads, H], in the order of the rotated dimensions."""
    if spec.name not in ("q_scale_NH", "k_scale_KH"):
        return None
    heads, H = spec.shape(model)
    return Conversion(
        (heads, H),
        lambda x: x.reshape(heads, 2, H // 2).swapaxes(1, 2).reshape(heads, H),
        lambda x: x.reshape(heads, H // 2, 2).swapaxes(1, 2).reshape(heads, H),
    )


def _options(hf_config: dict) -> dict[str, Any]:
    return {"qk_norm": "layer" if hf_config.get("use_qk_norm") else "none"}


COHERE = Family(
    model_type="cohere",
    architecture="CohereForCausalLM",
    shape={**SERIAL_RMS, "block": ("parallel",), "norm": ("layer",), "qk_norm": ("none", "layer")},
    supported={"attention_bias": (False,), "hidden_act": ("silu",)},
    epsilon="layer_norm_eps",
    names={
        **{name: of for name, of in LLAMA_NAMES.items() if "norm.weight" not in of},
        "scale_D": LLAMA_NAMES["scale_D"],
        "q_scale_NH": "self_attn.q_norm.weight",
        "k_scale_KH": "self_attn.k_norm.weight",
    },
    convert=_convert,
    interleaved=True,
    scaled_logits=True,
    tied=True,
    options=_options,
    keys=lambda model: {"use_qk_norm": model.qk_norm == "layer"},
)
