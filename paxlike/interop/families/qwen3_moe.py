"""Qwen 3 with a mixture of experts in every layer (arXiv 2505.09388, section 2).

The weights of its training losses are not converted (see `mixtral.py`).
"""

from typing import Any

from paxlike.config import ModelConfig
from paxlike.interop.families import qwen_layers
from paxlike.interop.families.family import LLAMA_NAMES, SERIAL_RMS, Family
from paxlike.interop.families.mixtral import plain_router, read_experts

EXPERTS = "mlp.experts.{expert}"


def _options(hf_config: dict) -> dict[str, Any]:
    bias = "qkvo" if hf_config.get("attention_bias") else "none"
    experts = read_experts(
        hf_config,
        "num_experts",
        "moe_intermediate_size",
        renormalize=bool(hf_config.get("norm_topk_prob", False)),
    )
    return {"attention_bias": bias, "experts": experts}


def _keys(model: ModelConfig) -> dict[str, Any]:
    return {
        **qwen_layers.keys(model),
        "moe_intermediate_size": model.experts.d_ff,
        "num_experts": model.experts.count,
        "num_experts_per_tok": model.experts.top_k,
        "norm_topk_prob": model.experts.renormalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


QWEN_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    shape={
        **SERIAL_RMS,
        "block": ("serial_experts",),
        "qk_norm": ("head",),
        "attention_bias": ("none", "qkvo"),
    },
    supported={
        "attention_bias": (False, True), "hidden_act": ("silu",), "decoder_sparse_step": (1,),
        "mlp_only_layers": ([],), "use_sliding_window": (False,),
    },
    names={
        **LLAMA_NAMES,
        "experts_scale_D": "post_attention_layernorm.weight",
        "wrouter_DE": "mlp.gate.weight",
        "wgate_EDM": f"{EXPERTS}.gate_proj.weight",
        "wup_EDM": f"{EXPERTS}.up_proj.weight",
        "wdown_EMD": f"{EXPERTS}.down_proj.weight",
    },
    fits=plain_router,
    options=_options,
    keys=_keys,
)  # fmt: skip
