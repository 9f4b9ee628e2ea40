"""Plots the results of `bitnet_learning.py`: loss by step, and final loss by peak learning rate."""

import math
from collections.abc import Iterable
from html import escape

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 460, 300, 52, 30, 14, 40
COLORS = ("#1f6fb4", "#d1603d", "#3a8a4d")


def draw(variants: Iterable[str], runs: list[dict], searched: list[dict]) -> str:
    """SVG of two panels.

    runs: plotted as one loss curve each. searched: runs of one seed at different learning rates.
    """
    color = dict(zip(variants, COLORS, strict=True))
    curves = [(r["variant"], list(enumerate(_smooth(r["losses"]), 1))) for r in runs]
    ends = {
        variant: sorted(
            (math.log2(r["rate"]), r["validation"])
            for r in searched
            if r["variant"] == variant and r["validation"]
        )
        for variant in color
    }
    ticks = {math.log2(r["rate"]): f"{r['rate']:g}" for r in searched}
    left = _panel(
        curves,
        color,
        "training loss, nats per token, by step",
        {x: str(x) for x in (1, 40, 80, 120)},
        0,
    )
    right = _panel(
        [(variant, points) for variant, points in ends.items() if points],
        color,
        "final validation loss by peak learning rate",
        ticks,
        WIDTH,
        dots=True,
    )
    legend = "".join(
        f'<text x="{LEFT + 180 * i}" y="{HEIGHT + 16}" fill="{c}">{escape(variant)}</text>'
        for i, (variant, c) in enumerate(color.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT + 26}"'
        ' font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{left}{right}{legend}</svg>\n'
    )


def _panel(
    curves, color: dict, title: str, ticks: dict[float, str], shift: int, dots: bool = False
) -> str:
    """One plot of (variant, points) curves, `shift` units from the left."""
    xs, ys = ([point[i] for _, points in curves for point in points] for i in (0, 1))
    low, high = math.floor(min(ys) * 10) / 10, math.ceil(max(ys) * 10) / 10

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - min(xs)) / (max(xs) - min(xs)), (y - low) / (high - low)
        return round(LEFT + across * (WIDTH - LEFT - RIGHT), 1), round(
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1
        )

    parts = [f'<text x="{LEFT}" y="18" fill="#333">{title}</text>']
    for i in range(5):
        y = low + (high - low) * i / 4
        (x1, y1), (x2, _) = at(min(xs), y), at(max(xs), y)
        parts.append(f'<line x1="{x1}" x2="{x2}" y1="{y1}" y2="{y1}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{x1 - 6}" y="{y1 + 4}" text-anchor="end" fill="#555">{y:.2f}</text>'
        )
    parts += [
        f'<text x="{at(x, low)[0]}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle"'
        f' fill="#555">{word}</text>'
        for x, word in ticks.items()
    ]
    for variant, points in curves:
        line = " ".join(f"{x},{y}" for x, y in (at(*point) for point in points))
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{color[variant]}" stroke-width="1.5"/>'
        )
        if dots:
            parts += [
                f'<circle cx="{x}" cy="{y}" r="3" fill="{color[variant]}"/>'
                for x, y in (at(*p) for p in points)
            ]
    return f'<g transform="translate({shift} 0)">{"".join(parts)}</g>'


def _smooth(losses: list[float]) -> list[float]:
    """Exponential moving average with weight 0.2 for the newest value."""
    smoothed, mean = [], losses[0]
    for loss in losses:
        mean += 0.2 * (loss - mean)
        smoothed.append(mean)
    return smoothed
