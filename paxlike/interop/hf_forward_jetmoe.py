"""The forward pass of JetMoE in NumPy (see `hf_forward.py`; arXiv 2404.07413, section 2)."""

from collections.abc import Callable

import numpy as np

from paxlike.interop.hf_layout import is_tied
from paxlike.interop.hf_numpy import Past, attend, norm, rotate

Array = np.ndarray
Read = Callable[[str], Array]
NORM_EPSILON = 1e-6
"""Of the norms of the layers, whatever config.json says."""


def jetmoe(hf_config: dict, w: Read, tokens_T: Array, past: Past) -> Array:
    """Returns float32 logits [T, V]. w: a tensor by its name, without `.weight` if it is one."""
    c, x = hf_config, w("model.embed_tokens")[tokens_T]
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        y = norm(x, w(f"{at}.input_layernorm"), NORM_EPSILON, centered=False)
        x = x + _attention(c, w, y, layer, past)
        y = norm(x, w(f"{at}.post_attention_layernorm"), NORM_EPSILON, centered=False)
        x = x + _networks(c, w, y, f"{at}.mlp")
    head = w("model.embed_tokens" if is_tied(c) else "lm_head")
    return norm(x, w("model.norm"), c["rms_norm_eps"], centered=False) @ head.T


def _attention(c: dict, w: Read, x: Array, layer: int, past: Past) -> Array:
    """The query heads of one expert attend to all keys; each choice of an expert does so alone."""
    at, T, H = f"model.layers.{layer}.self_attention", len(x), c["kv_channels"]
    chosen, weights = _routed(c, w, x, f"{at}.experts")
    k, v = (half.reshape(T, -1, H) for half in np.split(x @ w(f"{at}.kv_proj").T, 2, axis=1))
    k, v = past.before(layer, rotate(c, k, past.length), v)
    queries, outputs = w(f"{at}.experts.input_linear"), w(f"{at}.experts.output_linear")
    out = np.zeros_like(x) + w(f"{at}.experts.bias")
    for choice in range(chosen.shape[1]):
        experts = chosen[:, choice]
        q = np.stack([queries[e] @ row for e, row in zip(experts, x, strict=True)])
        found = attend(rotate(c, q.reshape(T, -1, H), past.length), k, v)
        mixed = np.stack([outputs[e] @ row for e, row in zip(experts, found, strict=True)])
        out += weights[:, choice, None] * mixed
    return out


def _networks(c: dict, w: Read, x: Array, at: str) -> Array:
    chosen, weights = _routed(c, w, x, at)
    inner, outer = w(f"{at}.input_linear"), w(f"{at}.output_linear")
    out = np.zeros_like(x) + w(f"{at}.bias")
    for expert in np.unique(chosen):
        tokens, places = np.nonzero(chosen == expert)
        gate, up = np.split(x[tokens] @ inner[expert].T, 2, axis=1)
        hidden = gate / (1 + np.exp(-gate)) * up
        out[tokens] += weights[tokens, places, None] * (hidden @ outer[expert].T)
    return out


def _routed(c: dict, w: Read, x: Array, at: str) -> tuple[Array, Array]:
    """(numbers, weights) of the k experts of each token: a softmax over their logits."""
    logits = x @ w(f"{at}.router.layer").T
    chosen = np.argsort(-logits, axis=-1, kind="stable")[:, : c["num_experts_per_tok"]]
    weights = np.exp(np.take_along_axis(logits - logits.max(-1, keepdims=True), chosen, -1))
    return chosen, weights / weights.sum(-1, keepdims=True)
