"""Qwen 3 (dense): Llama with norms of query and key heads."""

from typing import Any

from paxlike.interop.families import qwen_layers
from paxlike.interop.families.family import SERIAL_RMS, Family


def _options(hf_config: dict) -> dict[str, Any]:
    bias = "qkvo" if hf_config.get("attention_bias") else "none"
    return {"attention_bias": bias, **qwen_layers.options(hf_config)}


QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    shape={
        **SERIAL_RMS,
        "block": ("serial", "serial_local"),
        "qk_norm": ("head",),
        "attention_bias": ("none", "qkvo"),
    },
    supported={"attention_bias": (False, True), "hidden_act": ("silu",)},
    patterned=True,
    options=_options,
    keys=qwen_layers.keys,
)
