"""Mixtral: Mistral with a mixture of experts in every layer (arXiv 2401.04088, section 2).

The weights of its training losses are not converted: transformers normalizes its load-balancing
loss differently, and has no z-loss.
"""

from typing import Any

from paxlike.config import ExpertsConfig, ModelConfig
from paxlike.interop.families import mistral
from paxlike.interop.families.family import LLAMA_NAMES, SERIAL_RMS, Family, required

EXPERTS = "block_sparse_moe.experts.{expert}"


def _options(hf_config: dict) -> dict[str, Any]:
    block = mistral.options(hf_config, "serial_experts")
    return {**block, "experts": read_experts(hf_config, "num_local_experts", "intermediate_size")}


def read_experts(hf_config: dict, count: str, d_ff: str, **fields: Any) -> ExpertsConfig:
    """The experts of a config.json. count, d_ff: their keys. Raises UserError if one is missing."""
    keys = {"count": count, "top_k": "num_experts_per_tok", "d_ff": d_ff}
    values = {field: required(hf_config, key) for field, key in keys.items()}
    return ExpertsConfig(**values, **fields)


def _keys(model: ModelConfig) -> dict[str, Any]:
    return {
        **mistral.keys(model),
        "intermediate_size": model.experts.d_ff,
        "num_local_experts": model.experts.count,
        "num_experts_per_tok": model.experts.top_k,
    }


def plain_router(model: ModelConfig, output_bias: bool = False) -> bool:
    """Whether the router has softmax scores, and no shared experts, bias or factor beside them.

    output_bias: whether the sum of the experts' outputs has a bias.
    """
    c = model.experts
    plain = (c.shared, c.scaling, c.bias_step, c.output_bias) == (0, 1.0, 0.0, output_bias)
    return c.scores == "softmax" and plain


MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    shape={**SERIAL_RMS, "block": ("serial_experts", "serial_experts_local")},
    supported={"hidden_act": ("silu",)},
    names={
        **LLAMA_NAMES,
        "experts_scale_D": "post_attention_layernorm.weight",
        "wrouter_DE": "block_sparse_moe.gate.weight",
        "wgate_EDM": f"{EXPERTS}.w1.weight",
        "wup_EDM": f"{EXPERTS}.w3.weight",
        "wdown_EMD": f"{EXPERTS}.w2.weight",
    },
    fits=lambda model: plain_router(model) and model.experts.renormalize,
    options=_options,
    keys=_keys,
)
