"""The forward passes of CohereForCausalLM and LlamaForCausalLM in numpy, from their own tensors, a layer at a time.

Written after their definitions and not after ours: a conversion is checked by comparing it with ours, where neither torch nor
transformers is installed too. Reads one tensor at a time.
"""

from collections.abc import Callable

import numpy as np

from paxlike.interop.hf_layout import is_tied, rope_theta

Array = np.ndarray


def logits(told: dict, read: Callable[[str], Array], tokens_T: Array) -> Array:
    """float32 [T, V] of one sequence. `told`: their config.json; `read(name)`: a tensor."""

    def w(name: str) -> Array:
        return read(f"{name}.weight").astype(np.float32)

    cohere = told["model_type"] == "cohere"
    epsilon = told["layer_norm_eps" if cohere else "rms_norm_eps"]
    x = read("model.embed_tokens.weight")[tokens_T].astype(np.float32)
    for layer in range(told["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        y = _norm(x, w(f"{at}.input_layernorm"), epsilon, centered=cohere)
        mixed = _attention(told, lambda name, at=at: w(f"{at}.self_attn.{name}"), y)
        if cohere:
            x = x + mixed + _feed_forward(lambda name, at=at: w(f"{at}.mlp.{name}"), y)
        else:
            x = x + mixed
            y = _norm(x, w(f"{at}.post_attention_layernorm"), epsilon, centered=False)
            x = x + _feed_forward(lambda name, at=at: w(f"{at}.mlp.{name}"), y)
    x = _norm(x, w("model.norm"), epsilon, centered=cohere)
    head = w("model.embed_tokens" if is_tied(told) else "lm_head")
    return x @ head.T * (told.get("logit_scale", 0.0625) if cohere else 1.0)


def _norm(x: Array, scale: Array, epsilon: float, centered: bool) -> Array:
    if centered:
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(epsilon)) * scale


def _feed_forward(w: Callable[[str], Array], x: Array) -> Array:
    gate = x @ w("gate_proj").T
    return (gate / (1 + np.exp(-gate)) * (x @ w("up_proj").T)) @ w("down_proj").T


def _attention(told: dict, w: Callable[[str], Array], x: Array) -> Array:
    T, N = len(x), told["num_attention_heads"]
    K = told.get("num_key_value_heads") or N
    H = told.get("head_dim") or told["hidden_size"] // N
    q, k, v = ((x @ w(f"{name}_proj").T).reshape(T, -1, H) for name in "qkv")
    q, k = _rotate(told, q), _rotate(told, k)
    k, v = np.repeat(k, N // K, axis=1), np.repeat(v, N // K, axis=1)
    q, k, v = (heads.swapaxes(0, 1) for heads in (q, k, v))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(np.float32(H))
    scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ v).swapaxes(0, 1).reshape(T, -1) @ w("o_proj").T


def _rotate(told: dict, x: Array) -> Array:
    """Cohere turns (2i, 2i + 1), Llama (i, i + H/2), both by t * theta**(-2i/H)."""
    T, _, H = x.shape
    angles = np.outer(np.arange(T), rope_theta(told) ** (-np.arange(0, H, 2) / H)).astype(np.float32)[:, None]
    cos, sin = np.cos(angles), np.sin(angles)
    turned = np.empty_like(x)
    first, second = (
        (slice(0, None, 2), slice(1, None, 2))
        if told["model_type"] == "cohere"
        else (slice(0, H // 2), slice(H // 2, None))
    )
    turned[..., first] = x[..., first] * cos - x[..., second] * sin
    turned[..., second] = x[..., second] * cos + x[..., first] * sin
    return turned
