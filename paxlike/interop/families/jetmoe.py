"""JetMoE: mixtures of feed-forward networks and of attention heads (arXiv 2404.07413, section 2).

All experts of a layer share a tensor [experts, outputs, inputs]. An expert has as many query heads
as there are key/value heads, and both mixtures have a bias. transformers computes the norms of the
layers with 1e-6 whatever config.json says, so no other `rms_norm_eps` is supported. The weights of
the training losses are not converted (see `mixtral.py`).
"""

import math
from typing import Any

from paxlike.architecture.branch import WeightSpec
from paxlike.config import ModelConfig
from paxlike.interop.families.family import LLAMA_NAMES, SERIAL_RMS, Conversion, Family, required
from paxlike.interop.families.mixtral import plain_router, read_experts

NORM_EPSILON = 1e-6
HEADS, NETWORKS = "self_attention.experts", "mlp"
_SECOND = ("wv_DKH", "wup_EDM")
"""Weights that are the second half of a tensor's outputs."""


def _convert(spec: WeightSpec, model: ModelConfig) -> Conversion | None:
    """Keys and values share a tensor, and so do the two input projections of the experts."""
    if spec.kind != "expert" and spec.name not in ("wk_DKH", "wv_DKH"):
        return None
    shape, experts = spec.shape(model), spec.letters[:1] == "E"
    stack, matrix = shape[:experts], shape[experts:]
    inner = 1 if spec.letters[experts] == "D" else len(matrix) - 1
    inputs, outputs = math.prod(matrix[:inner]), math.prod(matrix[inner:])
    shared = spec.name in ("wk_DKH", "wv_DKH", "wgate_EDM", "wup_EDM")
    first = outputs if spec.name in _SECOND else 0
    return Conversion(
        (*stack, outputs * (1 + shared), inputs),
        lambda x: x.reshape(*stack, inputs, outputs).swapaxes(-2, -1),
        lambda x: x[..., first : first + outputs, :].swapaxes(-2, -1).reshape(shape),
        axis=len(stack),
    )


def _options(hf_config: dict) -> dict[str, Any]:
    required(hf_config, "kv_channels")
    sizes = "num_local_experts", "intermediate_size"
    return {"experts": read_experts(hf_config, *sizes, output_bias=True)}


def _keys(model: ModelConfig) -> dict[str, Any]:
    return {
        "intermediate_size": model.experts.d_ff,
        "num_local_experts": model.experts.count,
        "num_experts_per_tok": model.experts.top_k,
    }


def _fits(model: ModelConfig) -> bool:
    heads = model.heads == model.kv_heads and model.norm_epsilon == NORM_EPSILON
    return heads and plain_router(model, output_bias=True) and model.experts.renormalize


JETMOE = Family(
    model_type="jetmoe",
    architecture="JetMoeForCausalLM",
    shape={**SERIAL_RMS, "block": ("serial_expert_heads",)},
    supported={"activation_function": ("silu",), "rms_norm_eps": (NORM_EPSILON,)},
    names={
        "scale_D": LLAMA_NAMES["scale_D"],
        "wheads_router_DE": f"{HEADS}.router.layer.weight",
        "wq_EDNH": f"{HEADS}.input_linear.weight",
        "wk_DKH": "self_attention.kv_proj.weight",
        "wv_DKH": "self_attention.kv_proj.weight",
        "wo_ENHD": f"{HEADS}.output_linear.weight",
        "expert_heads_bias_D": f"{HEADS}.bias",
        "experts_scale_D": LLAMA_NAMES["feed_forward_scale_D"],
        "wrouter_DE": f"{NETWORKS}.router.layer.weight",
        "wgate_EDM": f"{NETWORKS}.input_linear.weight",
        "wup_EDM": f"{NETWORKS}.input_linear.weight",
        "wdown_EMD": f"{NETWORKS}.output_linear.weight",
        "experts_bias_D": f"{NETWORKS}.bias",
    },
    convert=_convert,
    tied=True,
    # transformers multiplies the number of heads by k itself.
    renamed={
        "num_attention_heads": "num_key_value_heads",
        "head_dim": "kv_channels",
        "hidden_act": "activation_function",
    },
    fits=_fits,
    options=_options,
    keys=_keys,
)
