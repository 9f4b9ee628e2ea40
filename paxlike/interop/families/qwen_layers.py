"""Which layers of a Qwen have a sliding window."""

from typing import Any

from paxlike.config import ModelConfig
from paxlike.interop.families.family import is_local, layer_types, layers_of


def options(hf_config: dict) -> dict[str, Any]:
    """Fields of ModelConfig: layers from `max_window_layers` on are local, if windows are used."""
    if not hf_config.get("use_sliding_window") or not hf_config.get("sliding_window"):
        return {}
    first = hf_config.get("max_window_layers", 28)
    local = is_local(hf_config, lambda layer: layer >= first)
    return layers_of(local, hf_config["sliding_window"])


def keys(model: ModelConfig) -> dict[str, Any]:
    """Keys of config.json."""
    if not model.sliding_window:
        return {"use_sliding_window": False}
    types = layer_types(model)
    return {
        "use_sliding_window": True,
        "sliding_window": model.sliding_window,
        "layer_types": types,
        "max_window_layers": types.index("sliding_attention"),
    }
