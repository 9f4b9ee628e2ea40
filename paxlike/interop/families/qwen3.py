"""Qwen 3 (dense): Llama with norms of query and key heads."""

from paxlike.interop.families.family import SERIAL_RMS, Family

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    shape={**SERIAL_RMS, "qk_norm": (True,), "attention_bias": ("none", "qkvo")},
    supported={"attention_bias": (False, True), "hidden_act": ("silu",)},
    options=lambda hf_config: {"attention_bias": "qkvo"} if hf_config.get("attention_bias") else {},
    keys=lambda model: {"use_sliding_window": False},
)
