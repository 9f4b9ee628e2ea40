"""Rotary embeddings in config.json: `rope_parameters`, and `rope_theta` with `rope_scaling` of
versions before 5.
"""

import math
from typing import Any

from paxlike.config import ModelConfig, RopeScalingConfig, UserError

_IGNORED = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_KNOWN = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    },
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "truncate", "mscale", "mscale_all_dim",
    },
}  # fmt: skip
"""Type -> the parameters that are read."""


def read_rope(hf_config: dict) -> tuple[float, RopeScalingConfig]:
    """(theta, scaling). Raises UserError for a missing value or a scaling that is not supported."""
    values = parameters(hf_config)
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in _KNOWN or (unknown := set(values) - _KNOWN[kind] - _IGNORED):
        detail = f" (unknown: {', '.join(sorted(unknown))})" if kind in _KNOWN else ""
        raise UserError(
            f"config.json scales RoPE as {values}, which is not supported{detail}; rope_type may "
            f"be {', '.join(_KNOWN)}."
        )
    theta = values.get("rope_theta", hf_config.get("rope_theta", hf_config.get("rotary_emb_base")))
    if theta is None:
        raise UserError("config.json has no rope_theta.")
    return float(theta), _scaling(kind, values, hf_config)


def parameters(hf_config: dict) -> dict[str, Any]:
    """The parameters of RoPE, wherever config.json has them; of global layers, if they differ."""
    new = hf_config.get("rope_parameters") or {}
    new = new.get("full_attention", new)
    return {**(hf_config.get("rope_scaling") or {}), **new}


def _scaling(kind: str, values: dict, hf_config: dict) -> RopeScalingConfig:
    if kind == "default":
        return RopeScalingConfig()
    if values.get("factor") is None:
        raise UserError(f"config.json scales RoPE as {values}, without a factor.")
    factor = float(values["factor"])
    if kind == "linear":
        return RopeScalingConfig("linear", factor)
    original = values.get("original_max_position_embeddings")
    original = int(original or hf_config.get("max_position_embeddings") or 0)
    if kind == "llama3":
        low, high = values.get("low_freq_factor", 1.0), values.get("high_freq_factor", 4.0)
        return RopeScalingConfig("llama3", factor, original, float(low), float(high))
    return RopeScalingConfig(
        "yarn",
        factor,
        original,
        beta_fast=float(values.get("beta_fast") or 32),
        beta_slow=float(values.get("beta_slow") or 1),
        attention_factor=float(values.get("attention_factor") or _mscale(values)),
        truncate=bool(values.get("truncate", True)),
    )


def _mscale(values: dict) -> float:
    """The attention factor by DeepSeek's two parameters; 0 (the default) without them."""
    factor, one, all_dims = (
        float(values.get(name) or 0) for name in ("factor", "mscale", "mscale_all_dim")
    )
    if not one or not all_dims:
        return 0.0

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    return scale(one) / scale(all_dims)


def rope_parameters(model: ModelConfig) -> dict[str, Any]:
    """`rope_parameters` of config.json."""
    s = model.rope_scaling
    values: dict[str, Any] = {"rope_type": "default" if s.kind == "none" else s.kind}
    if s.kind != "none":
        values["factor"] = s.factor
    if s.kind in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = s.original_length
    if s.kind == "llama3":
        values["low_freq_factor"] = s.low_frequency_factor
        values["high_freq_factor"] = s.high_frequency_factor
    if s.kind == "yarn":
        values |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow, "truncate": s.truncate}
        if s.attention_factor:
            values["attention_factor"] = s.attention_factor
    if model.rope_fraction != 1:
        values["partial_rotary_factor"] = model.rope_fraction
    return {**values, "rope_theta": model.rope_theta}
