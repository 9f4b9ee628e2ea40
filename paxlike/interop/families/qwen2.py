"""Qwen 2 and 2.5: Llama with biases of queries, keys and values."""

from paxlike.interop.families.family import SERIAL_RMS, Family
from paxlike.interop.families.qwen_layers import keys, options

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    shape={**SERIAL_RMS, "attention_bias": ("qkv",), "block": ("serial", "serial_local")},
    supported={"hidden_act": ("silu",)},
    patterned=True,
    options=options,
    keys=keys,
)
