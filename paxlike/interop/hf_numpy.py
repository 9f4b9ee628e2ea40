"""Parts of the forward passes in NumPy: norms, attention, rotary embeddings, activations."""

from typing import NamedTuple

import numpy as np

from paxlike.interop.hf_rope import parameters

Array = np.ndarray


class Past(NamedTuple):
    """Keys and values in front of the tokens, as a cache has them: keys are rotated."""

    layers: tuple[tuple[Array, Array], ...] = ()
    """(keys, values) of every layer, [P, K, H]; empty: none."""

    @property
    def length(self) -> int:
        return len(self.layers[0][0]) if self.layers else 0

    def before(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """The keys and values of a layer with these in front."""
        if not self.layers:
            return k, v
        past_k, past_v = self.layers[layer]
        return np.concatenate((past_k, k)), np.concatenate((past_v, v))


NO_PAST = Past()


def norm(x: Array, scale: Array, epsilon: float, centered: bool) -> Array:
    if centered:
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(epsilon)) * scale


def attend(
    q: Array, k: Array, v: Array, scale: float = 0.0, softcap: float = 0.0, window: int = 0
) -> Array:
    """Causal attention of heads [T, N, H] over [S, K, H]; returns [T, N * H].

    The queries are those of the last T of S positions. scale: of the scores, by default 1/sqrt(H).
    window: tokens that one attends to, by default all.
    """
    T, N, H = q.shape
    S, K, _ = k.shape
    k, v = np.repeat(k, N // K, axis=1), np.repeat(v, N // K, axis=1)
    q, k, v = (heads.swapaxes(0, 1) for heads in (q, k, v))
    scores = q @ k.swapaxes(1, 2) * np.float32(scale or H**-0.5)
    if softcap:
        scores = softcap * np.tanh(scores / np.float32(softcap))
    every = np.ones((T, S), bool)
    seen = np.tril(every, S - T) & ~np.tril(every, S - T - (window or S))
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ v).swapaxes(0, 1).reshape(T, -1)


def gelu_tanh(z: Array) -> Array:
    return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def rotate(hf_config: dict, x: Array, start: int) -> Array:
    """Rotates (2i, 2i + 1) for Cohere, otherwise (i, i + H/2), by the position times the
    frequencies. start: the position of the first token.
    """
    T, _, H = x.shape
    frequencies, magnitude = frequencies_of(hf_config, H)
    angles = np.outer(np.arange(start, start + T), frequencies).astype(np.float32)[:, None]
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


def frequencies_of(hf_config: dict, H: int) -> tuple[Array, float]:
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
