"""The forward passes of Gemma, OLMo 2, GPT-NeoX and GPT-2 in NumPy (see `hf_forward.py`)."""

import math
from collections.abc import Callable

import numpy as np

from paxlike.interop.hf_forward_jetmoe import jetmoe
from paxlike.interop.hf_layout import is_tied
from paxlike.interop.hf_numpy import Past, attend, gelu_tanh, norm, rotate

Array = np.ndarray
Read = Callable[[str], Array]
"""A tensor by its name; without `.weight` if it is one."""


def _gpt_neox(hf_config: dict, w: Read, tokens_T: Array, past: Past) -> Array:
    epsilon, N = hf_config["layer_norm_eps"], hf_config["num_attention_heads"]
    T, rope = len(tokens_T), hf_config.get("rope_parameters") or {}
    fraction = rope.get("partial_rotary_factor", hf_config.get("rotary_pct", 0.25))
    erf = np.vectorize(math.erf, otypes=[np.float32])
    act = {
        "gelu": lambda z: 0.5 * z * (1 + erf(z / np.sqrt(2))),
        "relu": lambda z: np.maximum(z, 0),
    }.get(hf_config["hidden_act"], gelu_tanh)

    def normed(name: str, x: Array) -> Array:
        return norm(x, w(name), epsilon, centered=True) + w(f"{name}.bias")

    def linear(name: str, x: Array) -> Array:
        return x @ w(name).T + w(f"{name}.bias")

    x = w("gpt_neox.embed_in")[tokens_T]
    H = x.shape[1] // N
    rotated = int(H * fraction)
    for layer in range(hf_config["num_hidden_layers"]):
        at = f"gpt_neox.layers.{layer}"
        qkv = linear(f"{at}.attention.query_key_value", normed(f"{at}.input_layernorm", x))
        q, k, v = np.moveaxis(qkv.reshape(T, N, 3, H), 2, 0)
        q, k = (
            np.concatenate([rotate(hf_config, h[..., :rotated], past.length), h[..., rotated:]], -1)
            for h in (q, k)
        )
        mixed = linear(f"{at}.attention.dense", attend(q, *past.before(layer, k, v)))
        parallel = hf_config.get("use_parallel_residual", True)
        y = normed(f"{at}.post_attention_layernorm", x if parallel else x + mixed)
        hidden = act(linear(f"{at}.mlp.dense_h_to_4h", y))
        x = x + mixed + linear(f"{at}.mlp.dense_4h_to_h", hidden)
    head = "gpt_neox.embed_in" if is_tied(hf_config) else "embed_out"
    return normed("gpt_neox.final_layer_norm", x) @ w(head).T


def _gpt2(hf_config: dict, w: Read, tokens_T: Array, past: Past) -> Array:
    N, T = hf_config["n_head"], len(tokens_T)
    erf = np.vectorize(math.erf, otypes=[np.float32])
    act = {
        "gelu": lambda z: 0.5 * z * (1 + erf(z / np.sqrt(2))),
        "relu": lambda z: np.maximum(z, 0),
    }.get(hf_config["activation_function"], gelu_tanh)

    def normed(name: str, x: Array) -> Array:
        epsilon = hf_config["layer_norm_epsilon"]
        return norm(x, w(name), epsilon, centered=True) + w(f"{name}.bias")

    def linear(name: str, x: Array) -> Array:
        return x @ w(name) + w(f"{name}.bias")

    x = w("transformer.wte")[tokens_T] + w("transformer.wpe")[past.length : past.length + T]
    for layer in range(hf_config["n_layer"]):
        at = f"transformer.h.{layer}"
        qkv = linear(f"{at}.attn.c_attn", normed(f"{at}.ln_1", x))
        q, k, v = (part.reshape(T, N, -1) for part in np.split(qkv, 3, axis=1))
        x = x + linear(f"{at}.attn.c_proj", attend(q, *past.before(layer, k, v)))
        hidden = act(linear(f"{at}.mlp.c_fc", normed(f"{at}.ln_2", x)))
        x = x + linear(f"{at}.mlp.c_proj", hidden)
    head = "transformer.wte" if is_tied(hf_config) else "lm_head"
    return normed("transformer.ln_f", x) @ w(head).T


def _gemma(hf_config: dict, w: Read, tokens_T: Array, past: Past) -> Array:
    c, T, H = hf_config, len(tokens_T), hf_config.get("head_dim", 256)
    third = c["model_type"] == "gemma3_text"
    local_rope = {
        "model_type": "gemma", "rope_parameters": {"rope_theta": c.get("rope_local_base_freq")}
    }  # fmt: skip

    def normed(name: str, x: Array) -> Array:
        return norm(x, 1 + w(name), c["rms_norm_eps"], centered=False)

    x = w("model.embed_tokens")[tokens_T] * np.float32(c["hidden_size"] ** 0.5)
    for layer in range(c["num_hidden_layers"]):
        at, local = f"model.layers.{layer}", c["layer_types"][layer] == "sliding_attention"
        y = normed(f"{at}.input_layernorm", x)
        q, k, v = ((y @ w(f"{at}.self_attn.{n}_proj").T).reshape(T, -1, H) for n in "qkv")
        if third:
            q, k = normed(f"{at}.self_attn.q_norm", q), normed(f"{at}.self_attn.k_norm", k)
        rope = local_rope if third and local else c
        mixed = attend(
            rotate(rope, q, past.length),
            *past.before(layer, rotate(rope, k, past.length), v),
            c["query_pre_attn_scalar"] ** -0.5,
            c.get("attn_logit_softcapping") or 0.0,
            c["sliding_window"] if local else 0,
        )
        mixed = mixed @ w(f"{at}.self_attn.o_proj").T
        x = x + normed(f"{at}.post_attention_layernorm", mixed)
        y = normed(f"{at}.pre_feedforward_layernorm", x)
        hidden = gelu_tanh(y @ w(f"{at}.mlp.gate_proj").T) * (y @ w(f"{at}.mlp.up_proj").T)
        x = x + normed(f"{at}.post_feedforward_layernorm", hidden @ w(f"{at}.mlp.down_proj").T)
    head = w("model.embed_tokens" if is_tied(c) else "lm_head")
    logits, cap = normed("model.norm", x) @ head.T, c.get("final_logit_softcapping")
    return cap * np.tanh(logits / np.float32(cap)) if cap else logits


def _olmo2(hf_config: dict, w: Read, tokens_T: Array, past: Past) -> Array:
    c, T = hf_config, len(tokens_T)
    H = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]

    def normed(name: str, x: Array) -> Array:
        return norm(x, w(name), c["rms_norm_eps"], centered=False)

    x = w("model.embed_tokens")[tokens_T]
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        q, k, v = (x @ w(f"{at}.self_attn.{n}_proj").T for n in "qkv")
        q, k = normed(f"{at}.self_attn.q_norm", q), normed(f"{at}.self_attn.k_norm", k)
        q, k, v = (heads.reshape(T, -1, H) for heads in (q, k, v))
        q, k = (rotate(c, one, past.length) for one in (q, k))
        mixed = attend(q, *past.before(layer, k, v)) @ w(f"{at}.self_attn.o_proj").T
        x = x + normed(f"{at}.post_attention_layernorm", mixed)
        gate, up = x @ w(f"{at}.mlp.gate_proj").T, x @ w(f"{at}.mlp.up_proj").T
        out = (gate / (1 + np.exp(-gate)) * up) @ w(f"{at}.mlp.down_proj").T
        x = x + normed(f"{at}.post_feedforward_layernorm", out)
    head = w("model.embed_tokens" if is_tied(c) else "lm_head")
    return normed("model.norm", x) @ head.T


OTHERS: dict[str, Callable[[dict, Read, Array, Past], Array]] = {
    "gpt_neox": _gpt_neox,
    "gpt2": _gpt2,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "olmo2": _olmo2,
    "jetmoe": jetmoe,
}
"""model_type -> logits [T, V] from (config.json, tensors, tokens, what they follow)."""
