"""Thinning and smoothing of curves with many steps."""

import numpy as np

BUCKETS = 360
"""Number of buckets that a curve is thinned to, two points each."""


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keeps the lowest and the highest value of each of BUCKETS buckets of neighboring steps.

    The first and the last point are kept too. Returns (steps, values), in order.
    """
    if steps.size <= 2 * BUCKETS:
        return steps, values
    edges = np.linspace(0, steps.size, BUCKETS + 1).astype(int)
    chosen = {0, steps.size - 1}
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        chosen |= {begin + int(values[begin:end].argmin()), begin + int(values[begin:end].argmax())}
    indices = np.array(sorted(chosen))
    return steps[indices], values[indices]


def smooth(values: np.ndarray, half_life: float) -> np.ndarray:
    """Returns the two-sided exponential average: the mean of a forward and a backward average.

    Weights halve every `half_life` positions. Two-sided, so that the line does not lag.
    """
    forward = _one_sided(values.tolist(), half_life)
    backward = _one_sided(values.tolist()[::-1], half_life)[::-1]
    return (forward + backward) / 2


def half_life(steps: int) -> int:
    """Returns the half-life for a curve with this many steps."""
    return max(1, steps // 80)


def _one_sided(values: list[float], half_life: float) -> np.ndarray:
    decay, total, weight = 0.5 ** (1 / half_life), 0.0, 0.0
    smoothed = []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        smoothed.append(total / weight)
    return np.array(smoothed)
