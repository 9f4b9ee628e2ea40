"""Mistral: Llama's architecture, with a sliding window in all layers or none."""

from typing import Any

from paxlike.config import ModelConfig
from paxlike.interop.families.family import SERIAL_RMS, Family, layers_of, no_sliding_window


def options(hf_config: dict, kind: str = "serial") -> dict[str, Any]:
    """Fields of ModelConfig. kind: of the blocks."""
    # A window of the whole context masks nothing.
    if no_sliding_window(hf_config):
        return {}
    return layers_of([True], hf_config["sliding_window"], kind)


def keys(model: ModelConfig) -> dict[str, Any]:
    return {"sliding_window": model.sliding_window or None}


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    shape={**SERIAL_RMS, "block": ("serial", "serial_local")},
    supported={"hidden_act": ("silu",)},
    options=options,
    keys=keys,
)
