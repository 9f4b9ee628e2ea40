"""Small runs with random parameters, laid out like trained runs, for the tests of `interop/`."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from helpers import host_params, model_config
from reference import logits as reference_logits

from paxlike.config import (
    Config,
    DataConfig,
    ExpertsConfig,
    PrecisionConfig,
    RopeScalingConfig,
    to_json,
)
from paxlike.data.tokenizer import BytesTokenizer, Tokenizer
from paxlike.training.checkpoint import write_checkpoint

LLAMA = {"block": "serial", "norm": "rms", "head": "untied", "kv_heads": 4}
NEOX = {
    "block": "parallel_two_norms", "norm_bias": True, "feed_forward": "gelu_exact",
    "feed_forward_bias": True, "attention_bias": "qkvo", "rope_fraction": 0.5, "head": "untied",
    "kv_heads": 8,
}  # fmt: skip
GEMMA = {
    "norm": "rms", "norm_placement": "both", "norm_offset": True, "feed_forward": "geglu",
    "embedding_scale": 32**0.5, "query_scale": 0.25, "sliding_window": 5, "kv_heads": 2,
}  # fmt: skip
KINDS = {
    "palm": {},
    "palm, grouped queries, untied": {"kv_heads": 2, "head": "untied", "rope_theta": 500.0},
    "palm, wide heads": {"head_dim": 6, "norm_epsilon": 1e-3},
    "llama": {"block": "serial", "norm": "rms", "head": "untied", "kv_heads": 4},
    "llama, tied": {"block": "serial", "norm": "rms"},
    "llama, biases": {"block": "serial", "norm": "rms", "attention_bias": "qkvo"},
    "llama 3.1": {
        **LLAMA, "rope_theta": 500.0,
        "rope_scaling": RopeScalingConfig("llama3", 8.0, 32, 1.0, 4.0),
    },
    "llama, linear": {**LLAMA, "rope_scaling": RopeScalingConfig("linear", 4.0)},
    "llama, yarn": {
        **LLAMA, "head_dim": 16, "rope_scaling": RopeScalingConfig("yarn", 4.0, 32)
    },
    "llama, yarn with all parameters": {
        **LLAMA, "head_dim": 16,
        "rope_scaling": RopeScalingConfig(
            "yarn", 4.0, 32, beta_fast=8.0, beta_slow=0.5, attention_factor=1.5, truncate=False
        ),
    },
    "qwen 2": {**LLAMA, "attention_bias": "qkv"},
    "pythia": NEOX,
    "pythia, serial, tied": {
        **NEOX, "block": "serial", "head": "tied", "feed_forward": "gelu", "rope_fraction": 1.0,
    },
    "qwen 3": {**LLAMA, "qk_norm": "head", "head_dim": 8},
    "qwen 3, windows": {
        **LLAMA, "qk_norm": "head", "layers": 3, "pattern": ("serial", "serial_local"),
        "sliding_window": 7,
    },
    "mistral, a window": {**LLAMA, "block": "serial_local", "sliding_window": 6},
    "command r, norms of heads": {"qk_norm": "layer", "kv_heads": 2},
    "gemma 2": {
        **GEMMA, "layers": 3, "pattern": ("serial_local", "serial"), "attention_softcap": 2.0,
        "logit_softcap": 3.0,
    },
    "gemma 3": {
        **GEMMA, "layers": 5, "pattern": ("serial_local", "serial_local", "serial"),
        "qk_norm": "head", "local_rope_theta": 100.0, "head": "untied",
        "rope_scaling": RopeScalingConfig("linear", 4.0),
    },
    "olmo 2": {**LLAMA, "norm_placement": "after", "qk_norm": "heads"},
    "mixtral": {
        **LLAMA, "block": "serial_experts", "d_ff": 24, "experts": ExpertsConfig(4, 2, 24),
    },
    "qwen 3, experts": {
        **LLAMA, "block": "serial_experts", "qk_norm": "head", "head_dim": 8,
        "experts": ExpertsConfig(5, 3, 24, renormalize=False),
    },
    "jetmoe": {
        "block": "serial_expert_heads", "norm": "rms", "kv_heads": 8, "d_ff": 24,
        "experts": ExpertsConfig(4, 2, 24, output_bias=True),
    },
    "gpt-2": {
        "block": "serial", "norm_bias": True, "feed_forward": "gelu", "feed_forward_bias": True,
        "attention_bias": "qkvo", "learned_positions": 64, "kv_heads": 8, "logit_scale": 1.0,
    },
}  # fmt: skip
"""Models with a Hugging Face equivalent. Their vocabularies have padding rows."""
PROMPT = np.arange(3, 23, dtype=np.int32)


def case(**changes) -> Config:
    config = model_config(**{"vocab_size": 300, "vocab_multiple": 64, **changes})
    return dataclasses.replace(config, data=DataConfig(sequence_length=64))


def make_run(
    folder: Path, config: Config, tokenizer: Tokenizer | None = None, params: dict | None = None
) -> Path:
    """Writes a run directory with a checkpoint of step 7."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config))
    (tokenizer or BytesTokenizer()).save(folder / "tokenizer")
    write_checkpoint(
        folder / "checkpoints", {"params": params or host_params(config)}, 7, {"step": 7}
    )
    return folder


def in_dtype(config: Config, dtype: str) -> tuple[Config, dict]:
    """The config and its parameters stored in `dtype`."""
    config = dataclasses.replace(config, precision=PrecisionConfig(params=dtype))
    return config, jax.tree.map(lambda leaf: leaf.astype(dtype), host_params(config))


def expected_logits(
    config: Config, params: dict | None = None, tokens: np.ndarray = PROMPT
) -> np.ndarray:
    """float64 [T, vocab_size], by the tests' reference implementation."""
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), params or host_params(config))
    return reference_logits(params, config.model, tokens[None])[0]
