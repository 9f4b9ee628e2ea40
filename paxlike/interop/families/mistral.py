"""Mistral, without a sliding window: Llama's architecture under another name."""

from paxlike.interop.families.family import SERIAL_RMS, Family

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    shape=SERIAL_RMS,
    supported={"hidden_act": ("silu",)},
    keys=lambda model: {"sliding_window": None},
)
