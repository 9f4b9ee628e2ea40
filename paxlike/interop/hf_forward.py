"""The forward passes of the families (`families/`) in NumPy, from config.json and its tensors.

They follow the definitions in transformers and are independent of paxlike's decoder, so that
comparing the two checks a conversion, even if neither torch nor transformers is installed. Tensors
are read one at a time.
"""

import math
from collections.abc import Callable

import numpy as np

from paxlike.interop.hf_layout import is_tied
from paxlike.interop.hf_rope import parameters

Array = np.ndarray


def logits(hf_config: dict, read: Callable[[str], Array], tokens_T: Array) -> Array:
    """Returns float32 logits [T, V] of one sequence.

    hf_config: the contents of config.json. read(name): returns a tensor.
    """

    def w(name: str) -> Array:
        name = name if name.endswith(".bias") else f"{name}.weight"
        return read(name).astype(np.float32)

    if hf_config["model_type"] == "gpt_neox":
        return _gpt_neox(hf_config, w, tokens_T)
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
    H = hf_config.get("head_dim") or hf_config["hidden_size"] // N
    kind, epsilon = hf_config["model_type"], hf_config.get("rms_norm_eps", 0.0)
    biases = {"qwen2": "qkv"}.get(kind, "qkvo" if hf_config.get("attention_bias") else "")

    def project(x: Array, name: str) -> Array:
        bias = w(f"{name}_proj.bias") if name in biases else 0.0
        return x @ w(f"{name}_proj").T + bias

    q, k, v = (project(x, name).reshape(T, -1, H) for name in "qkv")
    if kind == "qwen3":
        q, k = (_norm(h, w(f"{n}_norm"), epsilon, False) for h, n in ((q, "q"), (k, "k")))
    return project(_attend(_rotate(hf_config, q), _rotate(hf_config, k), v), "o")


def _attend(q: Array, k: Array, v: Array) -> Array:
    """Causal attention of heads [T, N or K, H]; returns [T, N * H]."""
    T, N, H = q.shape
    K = k.shape[1]
    k, v = np.repeat(k, N // K, axis=1), np.repeat(v, N // K, axis=1)
    q, k, v = (heads.swapaxes(0, 1) for heads in (q, k, v))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(np.float32(H))
    scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ v).swapaxes(0, 1).reshape(T, -1)


def _gpt_neox(hf_config: dict, w: Callable[[str], Array], tokens_T: Array) -> Array:
    epsilon, N = hf_config["layer_norm_eps"], hf_config["num_attention_heads"]
    T, rope = len(tokens_T), hf_config.get("rope_parameters") or {}
    fraction = rope.get("partial_rotary_factor", hf_config.get("rotary_pct", 0.25))
    erf = np.vectorize(math.erf, otypes=[np.float32])
    act = {
        "gelu": lambda z: 0.5 * z * (1 + erf(z / np.sqrt(2))),
        "relu": lambda z: np.maximum(z, 0),
    }.get(hf_config["hidden_act"], _gelu_tanh)

    def norm(name: str, x: Array) -> Array:
        return _norm(x, w(name), epsilon, centered=True) + w(f"{name}.bias")

    def linear(name: str, x: Array) -> Array:
        return x @ w(name).T + w(f"{name}.bias")

    x = w("gpt_neox.embed_in")[tokens_T]
    H = x.shape[1] // N
    rotated = int(H * fraction)
    for layer in range(hf_config["num_hidden_layers"]):
        at = f"gpt_neox.layers.{layer}"
        qkv = linear(f"{at}.attention.query_key_value", norm(f"{at}.input_layernorm", x))
        q, k, v = np.moveaxis(qkv.reshape(T, N, 3, H), 2, 0)
        q, k = (
            np.concatenate([_rotate(hf_config, h[..., :rotated]), h[..., rotated:]], -1)
            for h in (q, k)
        )
        mixed = linear(f"{at}.attention.dense", _attend(q, k, v))
        parallel = hf_config.get("use_parallel_residual", True)
        y = norm(f"{at}.post_attention_layernorm", x if parallel else x + mixed)
        hidden = act(linear(f"{at}.mlp.dense_h_to_4h", y))
        x = x + mixed + linear(f"{at}.mlp.dense_4h_to_h", hidden)
    head = "gpt_neox.embed_in" if is_tied(hf_config) else "embed_out"
    return norm("gpt_neox.final_layer_norm", x) @ w(head).T


def _gelu_tanh(z: Array) -> Array:
    return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def _rotate(hf_config: dict, x: Array) -> Array:
    """Rotates (2i, 2i + 1) for Cohere, otherwise (i, i + H/2), by t times the frequencies."""
    T, _, H = x.shape
    frequencies, magnitude = _frequencies(hf_config, H)
    angles = np.outer(np.arange(T), frequencies).astype(np.float32)[:, None]
    cos, sin = np.cos(angles) * np.float32(magnitude), np.sin(angles) * np.float32(magnitude)
    rotated = np.empty_like(x)
    first, second = (
        (slice(0, None, 2), slice(1, None, 2))
        if hf_config["model_type"] == "cohere"
        else (slice(0, H // 2), slice(H // 2, None))
    )
    rotated[..., first] = x[..., first] * cos - x[..., second] * sin
    rotated[..., second] = x[..., second] * cos + x[..., first] * sin
    return rotated


def _frequencies(hf_config: dict, H: int) -> tuple[Array, float]:
    """(float64 [H/2], factor of queries and keys), as transformers' `modeling_rope_utils` defines
    them.
    """
    p = parameters(hf_config)
    kind, theta = p.get("rope_type", p.get("type", "default")), p.get("rope_theta")
    names = ("rope_theta", "rotary_emb_base")
    theta = theta or next(hf_config[name] for name in names if hf_config.get(name))
    found = theta ** (-np.arange(0, H, 2) / H)
    if kind == "default":
        return found, 1.0
    factor = p["factor"]
    if kind == "linear":
        return found / factor, 1.0
    length = p.get("original_max_position_embeddings") or hf_config["max_position_embeddings"]
    if kind == "llama3":
        low, high, wavelengths = p["low_freq_factor"], p["high_freq_factor"], 2 * np.pi / found
        smooth = (length / wavelengths - low) / (high - low)
        between = (1 - smooth) * found / factor + smooth * found
        long = np.where(wavelengths > length / low, found / factor, between)
        return np.where(wavelengths < length / high, found, long), 1.0

    def dimension(rotations: float) -> float:
        return H * np.log(length / (rotations * 2 * np.pi)) / (2 * np.log(theta))

    begin, end = dimension(p.get("beta_fast") or 32), dimension(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        begin, end = np.floor(begin), np.ceil(end)
    begin, end = max(begin, 0), min(end, H - 1)
    ramp = np.clip((np.arange(H // 2) - begin) / max(end - begin, 1e-3), 0, 1)

    def scale(mscale: float) -> float:
        return 0.1 * mscale * np.log(factor) + 1.0 if factor > 1 else 1.0

    both = p.get("mscale") and p.get("mscale_all_dim")
    default = scale(p["mscale"]) / scale(p["mscale_all_dim"]) if both else scale(1.0)
    return found / factor * ramp + found * (1 - ramp), p.get("attention_factor") or default
