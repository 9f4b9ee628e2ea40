"""Llama 2, 3, 3.1, 3.2 and 3.3, and models with their architecture."""

from paxlike.interop.families.family import SERIAL_RMS, Family

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    shape={**SERIAL_RMS, "attention_bias": ("none", "qkvo")},
    supported={
        "attention_bias": (False, True), "mlp_bias": (False,), "hidden_act": ("silu",),
    },
    options=lambda hf_config: (
        {"attention_bias": "qkvo"} if hf_config.get("attention_bias") else {}
    ),
    keys=lambda model: {"mlp_bias": False},
)  # fmt: skip
