"""BitNet's BitLinear (arXiv 2310.11453, equations 1 to 16) in float64 NumPy.

It shares no code with `paxlike` and computes one tile, token and group at a time.
"""

import numpy as np

from paxlike.config import QuantConfig


def weight(
    w: np.ndarray, tiles: tuple[int, int], quant: QuantConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(W~, beta at every element) of a matrix of inputs x outputs."""
    signs, beta = np.zeros(w.shape), np.zeros(w.shape)
    height, width = w.shape[0] // tiles[0], w.shape[1] // tiles[1]
    for i in range(tiles[0]):
        for j in range(tiles[1]):
            at = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
            tile = w[at].astype(np.float64)
            beta[at] = np.abs(tile).mean()
            if quant.weights == "bitnet_b158":
                beta[at] = max(np.abs(tile).mean(), 1e-5)
                signs[at] = np.rint(tile / beta[at]).clip(-1, 1)
            elif quant.variant == "paper":
                signs[at] = [
                    [1.0 if value > tile.mean() else -1.0 for value in row] for row in tile
                ]
            else:
                signs[at] = np.sign(tile - tile.mean())
    return signs, beta


def norm(x: np.ndarray, groups: int, quant: QuantConfig, epsilon: float) -> np.ndarray:
    """SubLN of each group of the last dimension, per token."""
    parts = []
    for part in np.split(x.astype(np.float64), groups, axis=-1):
        center = part.mean(-1, keepdims=True) if quant.variant == "paper" else 0.0
        parts.append(
            (part - center) / np.sqrt(((part - center) ** 2).mean(-1, keepdims=True) + epsilon)
        )
    return np.concatenate(parts, -1)


def activation(
    x: np.ndarray, groups: int, quant: QuantConfig, shifted: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(x~, gamma / Q_b at every element) of [B, T, inputs]."""
    ints, scale = np.zeros(x.shape), np.zeros(x.shape)
    width = x.shape[-1] // groups
    steps, lowest = (128, -127) if quant.variant == "paper" else (127, -128)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            for g in range(groups):
                at = (b, t, slice(g * width, (g + 1) * width))
                over = x[at] if quant.per_token else x[..., at[2]]
                gamma = max(np.abs(over).max(), 1e-5)
                eta = over.min() if shifted else 0.0
                ints[at] = np.rint((x[at] - eta) * steps / gamma).clip(
                    1 if shifted else lowest, 127
                )
                scale[at] = gamma / steps
    return ints, scale


def bitlinear(
    x: np.ndarray,
    w: np.ndarray,
    groups: int,
    tiles: tuple[int, int],
    quant: QuantConfig,
    epsilon: float,
    shifted: bool = False,
) -> np.ndarray:
    """y = (x~ gamma / Q_b) (W~ beta) of SubLN(x): x [B, T, inputs], w [inputs, outputs]."""
    ints, scale = activation(norm(x, groups, quant, epsilon), groups, quant, shifted)
    signs, beta = weight(w, tiles, quant)
    return (ints * scale) @ (signs * beta)


def bitlinear_gradients(
    x: np.ndarray,
    w: np.ndarray,
    dy: np.ndarray,
    groups: int,
    tiles: tuple[int, int],
    quant: QuantConfig,
    epsilon: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(dx, dw) by the straight-through estimator: a quantizer's derivative is the identity."""
    ints, scale = activation(norm(x, groups, quant, epsilon), groups, quant)
    signs, beta = weight(w, tiles, quant)
    dnormed = dy @ (signs * beta).T
    dw = np.einsum("bti,bto->io", ints * scale, dy)
    return norm_gradient(x, dnormed, groups, quant, epsilon), dw


def norm_gradient(
    x: np.ndarray, dnormed: np.ndarray, groups: int, quant: QuantConfig, epsilon: float
) -> np.ndarray:
    """The gradient of sum(dnormed * norm(x)), by central differences."""
    dx, h = np.zeros(x.shape), 1e-6
    for i in range(x.shape[-1]):
        step = np.zeros(x.shape[-1])
        step[i] = h
        slope = (
            norm(x + step, groups, quant, epsilon) - norm(x - step, groups, quant, epsilon)
        ) / (2 * h)
        dx[..., i] = (slope * dnormed).sum(-1)
    return dx
