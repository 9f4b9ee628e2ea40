"""The decoder and its loss in float64 NumPy, from the formulas of the papers.

It shares no code with `paxlike` and computes one head, position and pair at a time.
"""

import math
from collections.abc import Callable

import numpy as np

from paxlike.config import ModelConfig


def norm(
    x: np.ndarray, scale: np.ndarray, kind: str, epsilon: float, offset: bool = False
) -> np.ndarray:
    """Layer norm (arXiv 1607.06450, eq. 3) without bias, or RMS norm (arXiv 1910.07467, eq. 4)."""
    center = x.mean(-1, keepdims=True) if kind == "layer" else 0.0
    normed = (x - center) / np.sqrt(((x - center) ** 2).mean(-1, keepdims=True) + epsilon)
    return normed * (1 + scale if offset else scale)


def rotate(
    x: np.ndarray, positions: np.ndarray, model: ModelConfig, local: bool = False
) -> np.ndarray:
    """RoPE (arXiv 2104.09864, eq. 14) of x [..., T, H], of which the first R are rotated.

    At position m, x[i] + j x[i + R/2] is multiplied by e^(j m f_i), with f_i = theta^(-2i/R) unless
    the frequencies are scaled.
    """
    R = int(x.shape[-1] * model.rope_fraction) // 2 * 2
    frequencies, magnitude = scaled_frequencies(model, R)
    if local and model.local_rope_theta:
        frequencies, magnitude = model.local_rope_theta ** (-np.arange(0.0, R, 2) / R), 1.0
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
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    segments: np.ndarray | None = None,
    scale: float = 0.0,
    softcap: float = 0.0,
    window: int = 0,
) -> np.ndarray:
    """Attention of q [B, T, N, H] and k, v [B, T, K, H], one query position at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    B, T, N, H = q.shape
    for b in range(B):
        for n in range(N):
            kv = n // (N // k.shape[2])
            for t in range(T):
                seen = np.arange(max(0, t + 1 - window) if window else 0, t + 1)
                if segments is not None:
                    seen = seen[segments[b, seen] == segments[b, t]]
                scores = k[b, seen, kv] @ q[b, t, n] * (scale or 1 / np.sqrt(H))
                if softcap:  # arXiv 2408.00118, section 2
                    scores = softcap * np.tanh(scores / softcap)
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


def experts(x: np.ndarray, block: dict, model: ModelConfig, routed: list) -> np.ndarray:
    """A mixture of experts, one token at a time. Appends (balance loss, z-loss) to `routed`.

    Of equal scores the first is chosen. A selection bias changes only what is chosen (arXiv
    2408.15664, section 3).
    """
    c, y = model.experts, np.zeros_like(x)
    for at, chosen in routes(x, block["wrouter_DE"], block, model, routed).items():
        for expert, weight in chosen:
            own = {"wgate_DF": "wgate_EDM", "wup_DF": "wup_EDM", "wdown_FD": "wdown_EMD"}
            network = {ours: block[theirs][expert] for ours, theirs in own.items()}
            y[at] += weight * feed_forward(x[at], network, model.feed_forward)
    if c.shared:
        own = {"wgate_DF": "wgate_DU", "wup_DF": "wup_DU", "wdown_FD": "wdown_UD"}
        network = {ours: block[theirs] for ours, theirs in own.items()}
        y += feed_forward(x, network, model.feed_forward)
    return y + block.get("experts_bias_D", 0.0)


def routes(
    x: np.ndarray, router: np.ndarray, block: dict, model: ModelConfig, routed: list
) -> dict[tuple[int, int], list[tuple[int, float]]]:
    """(row, position) -> (expert, weight) of its experts."""
    c, found = model.experts, {}
    load, probabilities, z = np.zeros(c.count), np.zeros(c.count), 0.0
    for at in [(b, t) for b in range(x.shape[0]) for t in range(x.shape[1])]:
        logits = x[at] @ router
        exps = np.exp(logits - logits.max())
        scores = exps / exps.sum() if c.scores == "softmax" else 1 / (1 + np.exp(-logits))
        biased = scores + block.get("selection_bias_E", 0.0)
        best = np.argsort(-biased, kind="stable")[: c.top_k]
        weights = scores[best] / (scores[best].sum() if c.renormalize else 1.0) * c.scaling
        found[at] = list(zip(best, weights, strict=True))
        load[best] += 1
        probabilities += scores / scores.sum()
        z += (np.log(exps.sum()) + logits.max()) ** 2
    fractions, means = load / load.sum(), probabilities / len(found)
    routed.append((c.count * fractions @ means, z / len(found)))
    return found


def expert_heads(
    x: np.ndarray, block: dict, model: ModelConfig, segments: np.ndarray | None, routed: list
) -> np.ndarray:
    """Attention by every expert for all tokens, of which each token takes its own (arXiv
    2404.07413, section 2.2)."""
    chosen = routes(x, block["wheads_router_DE"], block, model, routed)
    y = np.zeros_like(x)
    for expert in range(model.experts.count):
        own = {"wq_DNH": block["wq_EDNH"][expert], "wo_NHD": block["wo_ENHD"][expert]}
        out = mixer(x, {**block, **own}, model, segments, local=False)
        for at, experts_of_token in chosen.items():
            y[at] += dict(experts_of_token).get(expert, 0.0) * out[at]
    return y + block.get("expert_heads_bias_D", 0.0)


def network(x: np.ndarray, block: dict, model: ModelConfig, routed: list) -> np.ndarray:
    """The block's feed-forward network, or its mixture of experts."""
    if "wrouter_DE" in block:
        return experts(x, block, model, routed)
    return feed_forward(x, block, model.feed_forward)


def head_norm(x: np.ndarray, scale: np.ndarray, model: ModelConfig) -> np.ndarray:
    """x [B, T, heads, H]."""
    kind, how = model.qk_norm, (model.norm_epsilon, model.norm_offset)
    if kind == "heads":
        flat = x.reshape(*x.shape[:2], -1)
        return norm(flat, scale.reshape(-1), "rms", *how).reshape(x.shape)
    return norm(x, scale, "layer" if kind == "layer" else "rms", *how)


def mixer(
    x: np.ndarray, block: dict, model: ModelConfig, segments: np.ndarray | None, local: bool
) -> np.ndarray:
    """Attention with its projections, and with biases and norms of heads if the block has them."""
    positions = np.arange(x.shape[1])
    heads = []
    for name, letters in (("q", "DNH"), ("k", "DKH"), ("v", "DKH")):
        x_heads = np.einsum("btd,dnh->btnh", x, block[f"w{name}_{letters}"])
        x_heads = x_heads + block.get(f"b{name}_{letters[1:]}", 0.0)
        for scale in (f"{name}_scale_H", f"{name}_scale_{letters[1:]}"):
            if scale in block:
                x_heads = head_norm(x_heads, block[scale], model)
        if name != "v" and not model.learned_positions:
            x_heads = rotate(x_heads.swapaxes(1, 2), positions, model, local).swapaxes(1, 2)
        heads.append(x_heads)
    window = model.sliding_window if local else 0
    how = model.query_scale, model.attention_softcap, window
    out = np.einsum("btnh,nhd->btd", attention(*heads, segments, *how), block["wo_NHD"])
    return out + block.get("bo_D", 0.0)


def logits(
    params: dict,
    model: ModelConfig,
    tokens: np.ndarray,
    segments: np.ndarray | None = None,
    after_block: Callable[[int, np.ndarray], np.ndarray] = lambda layer, x: x,
    routed: list | None = None,
) -> np.ndarray:
    """[B, T, vocab_size] (PaLM, arXiv 2204.02311, section 2).

    params: float64, in the layout of checkpoints. A pattern of blocks repeats over the layers.
    after_block: changes the stream. routed: gets (balance loss, z-loss) of each layer with experts.
    """
    routed = [] if routed is None else routed
    x = params["embedding_VD"][tokens] * model.embedding_scale
    if model.learned_positions:
        x = x + params["positions_PD"][: tokens.shape[1]]
    kinds = model.pattern or (model.block,)
    for layer in range(model.layers):
        period, index = divmod(layer, len(kinds))
        if period == model.layers // len(kinds):  # incomplete
            stacks, period = params[f"blocks_rest_{index}"], 0
        else:
            stacks = params[f"blocks_{index}" if len(kinds) > 1 else "blocks"]
        block = {name: stack[period] for name, stack in stacks.items()}
        x = after_block(layer, run_block(x, block, kinds[index], model, segments, routed))
    x = named_norm(x, params, "scale_D", model)
    head = "embedding_VD" if model.head == "tied" else "head_DV"
    weight = params[head].T if model.head == "tied" else params[head]
    scale = model.logit_scale or (1 / np.sqrt(model.d_model) if model.head == "tied" else 1.0)
    found = x @ weight[:, : model.vocab_size] * scale
    cap = model.logit_softcap
    return cap * np.tanh(found / cap) if cap else found


def named_norm(x: np.ndarray, block: dict, name: str, model: ModelConfig) -> np.ndarray:
    """The norm of that name, or x where the block has none."""
    if name not in block:
        return x
    bias = block.get(name.replace("scale_D", "norm_bias_D"), 0.0)
    return norm(x, block[name], model.norm, model.norm_epsilon, model.norm_offset) + bias


def run_block(
    x: np.ndarray,
    block: dict,
    kind: str,
    model: ModelConfig,
    segments: np.ndarray | None,
    routed: list,
) -> np.ndarray:
    local, kind = kind.endswith("_local"), kind.removesuffix("_local")
    second = "experts_scale_D" if "_expert" in kind else "feed_forward_scale_D"
    kind, _, _ = kind.partition("_expert")
    y = named_norm(x, block, "scale_D", model)
    if "wq_EDNH" in block:
        mixed = expert_heads(y, block, model, segments, routed)
    else:
        mixed = mixer(y, block, model, segments, local)
    if kind == "parallel":
        return x + network(y, block, model, routed) + mixed
    if kind == "parallel_two_norms":
        z = named_norm(x, block, second, model)
        return x + network(z, block, model, routed) + mixed
    x = x + named_norm(mixed, block, "attention_output_scale_D", model)
    z = named_norm(x, block, second, model)
    out = network(z, block, model, routed)
    return x + named_norm(out, block, "feed_forward_output_scale_D", model)


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
