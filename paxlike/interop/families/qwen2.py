"""Qwen 2 and 2.5: Llama with biases of queries, keys and values."""

from paxlike.interop.families.family import SERIAL_RMS, Family

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    shape={**SERIAL_RMS, "attention_bias": ("qkv",)},
    supported={"hidden_act": ("silu",)},
    keys=lambda model: {"use_sliding_window": False},
)
