"""The decoder and its loss in float64 NumPy, from the formulas of the papers.

It shares no code with `paxlike` and computes one head, position and pair at a time.
"""

import math

import numpy as np

from paxlike.config import ModelConfig


def norm(x: np.ndarray, scale: np.ndarray, kind: str, epsilon: float) -> np.ndarray:
    """Layer norm (arXiv 1607.06450, eq. 3) without bias, or RMS norm (arXiv 1910.07467, eq. 4)."""
    center = x.mean(-1, keepdims=True) if kind == "layer" else 0.0
    return (x - center) / np.sqrt(((x - center) ** 2).mean(-1, keepdims=True) + epsilon) * scale


def rotate(x: np.ndarray, positions: np.ndarray, model: ModelConfig) -> np.ndarray:
    """RoPE (arXiv 2104.09864, eq. 14) of x [..., T, H], of which the first R are rotated.

    At position m, x[i] + j x[i + R/2] is multiplied by e^(j m f_i), with f_i = theta^(-2i/R) unless
    the frequencies are scaled.
    """
    R = int(x.shape[-1] * model.rope_fraction) // 2 * 2
    frequencies, magnitude = scaled_frequencies(model, R)
    pairs = x[..., : R // 2] + 1j * x[..., R // 2 : R]
    rotated = pairs * np.exp(1j * np.outer(positions, frequencies)) * magnitude
    return np.concatenate([rotated.real, rotated.imag, x[..., R:]], -1)


def scaled_frequencies(model: ModelConfig, R: int) -> tuple[np.ndarray, float]:
    """f_i one at a time, and the factor of queries and keys."""
    s, found, magnitude = model.rope_scaling, [], 1.0
    for i in range(R // 2):
        f = model.rope_theta ** (-2.0 * i / R)
        kept = {"none": 1.0, "linear": 0.0}.get(s.kind)
        turns = s.original_length * f / (2 * np.pi)  # rotations in the original context
        if s.kind == "llama3":
            if turns <= s.low_frequency_factor:
                kept = 0.0
            elif turns >= s.high_frequency_factor:
                kept = 1.0
            else:
                span = s.high_frequency_factor - s.low_frequency_factor
                kept = (turns - s.low_frequency_factor) / span
        if s.kind == "yarn":  # arXiv 2309.00071, section 3.2, linear in i instead of in the turns
            ends = [
                R * np.log(s.original_length / (beta * 2 * np.pi)) / (2 * np.log(model.rope_theta))
                for beta in (s.beta_fast, s.beta_slow)
            ]
            if s.truncate:
                ends = [np.floor(ends[0]), np.ceil(ends[1])]
            low, high = max(ends[0], 0), min(ends[1], R - 1)
            kept = 1 - min(max((i - low) / (high - low), 0.0), 1.0)
            magnitude = s.attention_factor or 0.1 * np.log(s.factor) + 1
        found.append(kept * f + (1 - kept) * f / s.factor)
    return np.array(found), magnitude


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, segments: np.ndarray | None = None
) -> np.ndarray:
    """Attention of q [B, T, N, H] and k, v [B, T, K, H], one query position at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    B, T, N, H = q.shape
    for b in range(B):
        for n in range(N):
            kv = n // (N // k.shape[2])
            for t in range(T):
                seen = np.arange(t + 1)
                if segments is not None:
                    seen = seen[segments[b, : t + 1] == segments[b, t]]
                scores = k[b, seen, kv] @ q[b, t, n] / np.sqrt(H)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = (weights / weights.sum()) @ v[b, seen, kv]
    return out


def feed_forward(x: np.ndarray, block: dict, kind: str) -> np.ndarray:
    up = x @ block["wup_DF"] + block.get("bup_F", 0.0)
    # The tanh approximation of arXiv 1606.08415, section 2.
    gelu = lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))  # noqa: E731
    if kind in ("swiglu", "geglu"):  # Shazeer, arXiv 2002.05202, eq. 6, with Swish_1
        gate = x @ block["wgate_DF"] + block.get("bgate_F", 0.0)
        hidden = (gate / (1 + np.exp(-gate)) if kind == "swiglu" else gelu(gate)) * up
    elif kind == "gelu":
        hidden = gelu(up)
    elif kind == "gelu_exact":
        hidden = 0.5 * up * (1 + np.vectorize(math.erf)(up / np.sqrt(2)))
    else:
        hidden = np.maximum(up, 0) ** {"relu": 1, "relu2": 2}[kind]
    return hidden @ block["wdown_FD"] + block.get("bdown_D", 0.0)


def mixer(
    x: np.ndarray, block: dict, model: ModelConfig, segments: np.ndarray | None
) -> np.ndarray:
    """Attention with its projections, and with biases and norms of heads if the block has them."""
    positions = np.arange(x.shape[1])
    heads = []
    for name, letters in (("q", "DNH"), ("k", "DKH"), ("v", "DKH")):
        x_heads = np.einsum("btd,dnh->btnh", x, block[f"w{name}_{letters}"])
        x_heads = x_heads + block.get(f"b{name}_{letters[1:]}", 0.0)
        if f"{name}_scale_H" in block:
            x_heads = norm(x_heads, block[f"{name}_scale_H"], "rms", model.norm_epsilon)
        if name != "v":
            x_heads = rotate(x_heads.swapaxes(1, 2), positions, model).swapaxes(1, 2)
        heads.append(x_heads)
    out = np.einsum("btnh,nhd->btd", attention(*heads, segments), block["wo_NHD"])
    return out + block.get("bo_D", 0.0)


def second_norm(x: np.ndarray, block: dict, kind: str, epsilon: float) -> np.ndarray:
    normed = norm(x, block["feed_forward_scale_D"], kind, epsilon)
    return normed + block.get("feed_forward_norm_bias_D", 0.0)


def logits(
    params: dict, model: ModelConfig, tokens: np.ndarray, segments: np.ndarray | None = None
) -> np.ndarray:
    """[B, T, vocab_size] (PaLM, arXiv 2204.02311, section 2).

    params: float64, in the layout of checkpoints. A pattern of blocks repeats over the layers.
    """
    x, how = params["embedding_VD"][tokens], (model.norm, model.norm_epsilon)
    kinds = model.pattern or (model.block,)
    for layer in range(model.layers):
        index = layer % len(kinds)
        stacks = params[f"blocks_{index}" if len(kinds) > 1 else "blocks"]
        block = {name: stack[layer // len(kinds)] for name, stack in stacks.items()}
        y = norm(x, block["scale_D"], *how) + block.get("norm_bias_D", 0.0)
        if kinds[index] == "parallel":
            x = x + feed_forward(y, block, model.feed_forward) + mixer(y, block, model, segments)
        elif kinds[index] == "parallel_two_norms":
            z = second_norm(x, block, *how)
            x = x + feed_forward(z, block, model.feed_forward) + mixer(y, block, model, segments)
        else:
            x = x + mixer(y, block, model, segments)
            x = x + feed_forward(second_norm(x, block, *how), block, model.feed_forward)
    x = norm(x, params["scale_D"], *how) + params.get("norm_bias_D", 0.0)
    if model.head == "tied":
        return x @ params["embedding_VD"][: model.vocab_size].T / np.sqrt(model.d_model)
    return x @ params["head_DV"][:, : model.vocab_size]


def losses(logits: np.ndarray, targets: np.ndarray, z_loss: float) -> tuple[float, float, int]:
    """Sums of loss, cross-entropy and correct predictions, where targets are not -1 (section 5)."""
    loss = cross_entropy = correct = 0
    for row, target in zip(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), strict=True):
        if target >= 0:
            log_z = np.log(np.exp(row - row.max()).sum()) + row.max()
            cross_entropy += log_z - row[target]
            loss += log_z - row[target] + z_loss * log_z**2
            correct += int(row.argmax() == target)
    return float(loss), float(cross_entropy), correct
