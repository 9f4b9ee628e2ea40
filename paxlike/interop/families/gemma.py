"""Gemma 2 and 3 (text): norms before and after each branch, local and global layers."""

from typing import Any

from paxlike.config import ModelConfig
from paxlike.interop.families.family import (
    LLAMA_NAMES,
    Family,
    is_local,
    layer_types,
    layers_of,
)
from paxlike.interop.hf_rope import rope_parameters

_NAMES = {
    **LLAMA_NAMES,
    "attention_output_scale_D": "post_attention_layernorm.weight",
    "feed_forward_scale_D": "pre_feedforward_layernorm.weight",
    "feed_forward_output_scale_D": "post_feedforward_layernorm.weight",
}
_SHAPE: dict[str, tuple] = {
    "block": ("serial", "serial_local"),
    "norm": ("rms",),
    "norm_placement": ("both",),
    "norm_offset": (True,),
    "feed_forward": ("geglu",),
    "query_scale": (),
    "embedding_scale": (),
}
_SUPPORTED: dict[str, tuple] = {
    "attention_bias": (False,),
    "hidden_activation": ("gelu_pytorch_tanh",),
    "hidden_act": ("gelu_pytorch_tanh", "gelu"),  # replaced by hidden_activation
    "use_bidirectional_attention": (False,),
}


def _common(hf_config: dict, every: int) -> dict[str, Any]:
    """every: by default one layer of so many is global."""
    every = hf_config.get("sliding_window_pattern", every)
    local = is_local(hf_config, lambda layer: bool((layer + 1) % every))
    return {
        "query_scale": float(hf_config.get("query_pre_attn_scalar", 256)) ** -0.5,
        "embedding_scale": hf_config.get("hidden_size", 1) ** 0.5,
        **layers_of(local, hf_config.get("sliding_window", 4096)),
    }


def _common_keys(model: ModelConfig) -> dict[str, Any]:
    scalar = (model.query_scale or model.head_dim**-0.5) ** -2
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        "sliding_window": model.sliding_window,
        "layer_types": layer_types(model),
    }


def _scaled_embedding(model: ModelConfig) -> bool:
    return abs(model.embedding_scale - model.d_model**0.5) < 1e-6 * model.embedding_scale


def _gemma2_options(hf_config: dict) -> dict[str, Any]:
    return {
        "attention_softcap": float(hf_config.get("attn_logit_softcapping", 50.0) or 0),
        "logit_softcap": float(hf_config.get("final_logit_softcapping", 30.0) or 0),
        **_common(hf_config, every=2),
    }


def _gemma2_keys(model: ModelConfig) -> dict[str, Any]:
    return {
        "attn_logit_softcapping": model.attention_softcap or None,
        "final_logit_softcapping": model.logit_softcap or None,
        **_common_keys(model),
    }


def _gemma3_options(hf_config: dict) -> dict[str, Any]:
    rope = hf_config.get("rope_parameters") or {}
    local = rope.get("sliding_attention", {}).get("rope_theta")
    return {
        "local_rope_theta": float(local or hf_config.get("rope_local_base_freq", 10_000.0)),
        **_common(hf_config, every=6),
    }


def _gemma3_keys(model: ModelConfig) -> dict[str, Any]:
    return {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "rope_local_base_freq": model.local_rope_theta,
        "rope_parameters": {
            "full_attention": rope_parameters(model),
            "sliding_attention": {"rope_type": "default", "rope_theta": model.local_rope_theta},
        },
        "use_bidirectional_attention": False,
        **_common_keys(model),
    }


GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    shape={**_SHAPE, "attention_softcap": (), "logit_softcap": ()},
    supported=_SUPPORTED,
    names=_NAMES,
    tied=True,
    patterned=True,
    fits=_scaled_embedding,
    options=_gemma2_options,
    keys=_gemma2_keys,
)
GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    shape={**_SHAPE, "qk_norm": ("head",), "local_rope_theta": ()},
    supported={
        **_SUPPORTED, "attn_logit_softcapping": (), "final_logit_softcapping": (),
    },
    names=_NAMES,
    tied=True,
    patterned=True,
    fits=lambda model: _scaled_embedding(model) and model.local_rope_theta > 0,
    options=_gemma3_options,
    keys=_gemma3_keys,
)  # fmt: skip
