"""The forward passes of the families (`families/`) in NumPy, from config.json and its tensors.

They follow the definitions in transformers and are independent of paxlike's decoder, so that
comparing the two checks a conversion, even if neither torch nor transformers is installed. Tensors
are read one at a time.
"""

from collections.abc import Callable

import numpy as np

from paxlike.interop.families.family import no_sliding_window
from paxlike.interop.hf_forward_others import OTHERS
from paxlike.interop.hf_layout import is_tied
from paxlike.interop.hf_numpy import NO_PAST, Past, attend, norm, rotate

Array = np.ndarray


def logits(
    hf_config: dict, read: Callable[[str], Array], tokens_T: Array, past: Past = NO_PAST
) -> Array:
    """Returns float32 logits [T, V] of one sequence.

    hf_config: the contents of config.json. read(name): returns a tensor. past: what the tokens
    follow.
    """

    def w(name: str) -> Array:
        name = name if name.endswith(".bias") else f"{name}.weight"
        # In one order, so that the same values give the same bits.
        return read(name).astype(np.float32, order="C")

    if hf_config["model_type"] in OTHERS:
        return OTHERS[hf_config["model_type"]](hf_config, w, tokens_T, past)
    cohere = hf_config["model_type"] == "cohere"

    def window(layer: int) -> int:
        if hf_config["model_type"] in ("llama", "cohere") or no_sliding_window(hf_config):
            return 0
        types = hf_config.get("layer_types")
        local = types is None or types[layer] == "sliding_attention"
        return hf_config["sliding_window"] if local else 0

    epsilon = hf_config["layer_norm_eps" if cohere else "rms_norm_eps"]
    x = read("model.embed_tokens.weight")[tokens_T].astype(np.float32)
    for layer in range(hf_config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        y = norm(x, w(f"{prefix}.input_layernorm"), epsilon, centered=cohere)
        projections = _below(w, f"{prefix}.self_attn")
        mixed = _attention(hf_config, projections, y, window(layer), past, layer)
        if cohere:
            x = x + mixed + _feed_forward(_below(w, f"{prefix}.mlp"), y)
        else:
            x = x + mixed
            y = norm(x, w(f"{prefix}.post_attention_layernorm"), epsilon, centered=False)
            x = x + _network(hf_config, _below(w, prefix), y)
    x = norm(x, w("model.norm"), epsilon, centered=cohere)
    head = w("model.embed_tokens" if is_tied(hf_config) else "lm_head")
    return x @ head.T * (hf_config.get("logit_scale", 0.0625) if cohere else 1.0)


def _below(w: Callable[[str], Array], prefix: str) -> Callable[[str], Array]:
    return lambda name: w(f"{prefix}.{name}")


def _network(hf_config: dict, w: Callable[[str], Array], x: Array) -> Array:
    """The feed-forward network of a layer, or its mixture of experts."""
    kind = hf_config["model_type"]
    if kind not in ("mixtral", "qwen3_moe"):
        return _feed_forward(_below(w, "mlp"), x)
    at = "block_sparse_moe" if kind == "mixtral" else "mlp"
    names = ("w1", "w3", "w2") if kind == "mixtral" else _NAMES
    logits = x @ w(f"{at}.gate").T
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    chosen = np.argsort(-scores, axis=-1, kind="stable")[:, : hf_config["num_experts_per_tok"]]
    weights = np.take_along_axis(scores, chosen, -1)
    if kind == "mixtral" or hf_config.get("norm_topk_prob"):
        weights /= weights.sum(-1, keepdims=True)
    out = np.zeros_like(x)
    for expert in np.unique(chosen):
        tokens, places = np.nonzero(chosen == expert)
        part = _feed_forward(_below(w, f"{at}.experts.{expert}"), x[tokens], names)
        out[tokens] += weights[tokens, places, None] * part
    return out


_NAMES = ("gate_proj", "up_proj", "down_proj")


def _feed_forward(
    w: Callable[[str], Array], x: Array, names: tuple[str, str, str] = _NAMES
) -> Array:
    gate_name, up, down = names
    gate = x @ w(gate_name).T
    return (gate / (1 + np.exp(-gate)) * (x @ w(up).T)) @ w(down).T


def _attention(
    hf_config: dict, w: Callable[[str], Array], x: Array, window: int, past: Past, layer: int
) -> Array:
    T, N = len(x), hf_config["num_attention_heads"]
    H = hf_config.get("head_dim") or hf_config["hidden_size"] // N
    kind, epsilon = hf_config["model_type"], hf_config.get("rms_norm_eps", 0.0)
    biases = {"qwen2": "qkv"}.get(kind, "qkvo" if hf_config.get("attention_bias") else "")

    def project(x: Array, name: str) -> Array:
        bias = w(f"{name}_proj.bias") if name in biases else 0.0
        return x @ w(f"{name}_proj").T + bias

    q, k, v = (project(x, name).reshape(T, -1, H) for name in "qkv")
    if kind in ("qwen3", "qwen3_moe"):
        q, k = (norm(h, w(f"{n}_norm"), epsilon, False) for h, n in ((q, "q"), (k, "k")))
    if hf_config.get("use_qk_norm"):  # Cohere
        epsilon = hf_config["layer_norm_eps"]
        q, k = (norm(h, w(f"{n}_norm"), epsilon, True) for h, n in ((q, "q"), (k, "k")))
    q, k = (rotate(hf_config, heads, past.length) for heads in (q, k))
    return project(attend(q, *past.before(layer, k, v), window=window), "o")
