"""The forward passes of CohereForCausalLM and LlamaForCausalLM in NumPy.

They follow the definitions in transformers and are independent of paxlike's decoder, so that
comparing the two checks a conversion, even if neither torch nor transformers is installed. Tensors
are read one at a time.
"""

from collections.abc import Callable

import numpy as np

from paxlike.interop.hf_layout import is_tied, rope_theta

Array = np.ndarray


def logits(hf_config: dict, read: Callable[[str], Array], tokens_T: Array) -> Array:
    """Returns float32 logits [T, V] of one sequence.

    hf_config: the contents of config.json. read(name): returns a tensor.
    """

    def w(name: str) -> Array:
        return read(f"{name}.weight").astype(np.float32)

    cohere = hf_config["model_type"] == "cohere"
    epsilon = hf_config["layer_norm_eps" if cohere else "rms_norm_eps"]
    x = read("model.embed_tokens.weight")[tokens_T].astype(np.float32)
    for layer in range(hf_config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        y = _norm(x, w(f"{prefix}.input_layernorm"), epsilon, centered=cohere)
        mixed = _attention(hf_config, _below(w, f"{prefix}.self_attn"), y)
        if cohere:
            x = x + mixed + _feed_forward(_below(w, f"{prefix}.mlp"), y)
        else:
            x = x + mixed
            y = _norm(x, w(f"{prefix}.post_attention_layernorm"), epsilon, centered=False)
            x = x + _feed_forward(_below(w, f"{prefix}.mlp"), y)
    x = _norm(x, w("model.norm"), epsilon, centered=cohere)
    head = w("model.embed_tokens" if is_tied(hf_config) else "lm_head")
    return x @ head.T * (hf_config.get("logit_scale", 0.0625) if cohere else 1.0)


def _norm(x: Array, scale: Array, epsilon: float, centered: bool) -> Array:
    if centered:
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(epsilon)) * scale


def _below(w: Callable[[str], Array], prefix: str) -> Callable[[str], Array]:
    return lambda name: w(f"{prefix}.{name}")


def _feed_forward(w: Callable[[str], Array], x: Array) -> Array:
    gate = x @ w("gate_proj").T
    return (gate / (1 + np.exp(-gate)) * (x @ w("up_proj").T)) @ w("down_proj").T


def _attention(hf_config: dict, w: Callable[[str], Array], x: Array) -> Array:
    T, N = len(x), hf_config["num_attention_heads"]
    K = hf_config.get("num_key_value_heads") or N
    H = hf_config.get("head_dim") or hf_config["hidden_size"] // N
    q, k, v = ((x @ w(f"{name}_proj").T).reshape(T, -1, H) for name in "qkv")
    q, k = _rotate(hf_config, q), _rotate(hf_config, k)
    k, v = np.repeat(k, N // K, axis=1), np.repeat(v, N // K, axis=1)
    q, k, v = (heads.swapaxes(0, 1) for heads in (q, k, v))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(np.float32(H))
    scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ v).swapaxes(0, 1).reshape(T, -1) @ w("o_proj").T


def _rotate(hf_config: dict, x: Array) -> Array:
    """Rotates (2i, 2i + 1) for Cohere or (i, i + H/2) for Llama, by t * theta**(-2i/H)."""
    T, _, H = x.shape
    angles = np.outer(np.arange(T), rope_theta(hf_config) ** (-np.arange(0, H, 2) / H)).astype(
        np.float32
    )[:, None]
    cos, sin = np.cos(angles), np.sin(angles)
    rotated = np.empty_like(x)
    first, second = (
        (slice(0, None, 2), slice(1, None, 2))
        if hf_config["model_type"] == "cohere"
        else (slice(0, H // 2), slice(H // 2, None))
    )
    rotated[..., first] = x[..., first] * cos - x[..., second] * sin
    rotated[..., second] = x[..., second] * cos + x[..., first] * sin
    return rotated
