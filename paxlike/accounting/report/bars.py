"""Stacked horizontal bars as inline SVG."""

import dataclasses
from collections.abc import Callable
from html import escape

WIDTH, LEFT, RIGHT, ROW = 620, 132, 92, 30


@dataclasses.dataclass(frozen=True)
class Bar:
    label: str
    segments: tuple[tuple[str, float, str], ...]
    """(name, value, color class) from left to right."""
    end: str
    """Text at the right end of the bar, such as its sum."""


def bars(
    rows: list[Bar],
    show: Callable[[float], str],
    *,
    scale: float | None = None,
    limit: float | None = None,
) -> str:
    """Draws one bar per row.

    show: formats a value. scale: the value of the full width; None scales each bar to the full
    width, so that segments show shares of the bar's sum. limit: draws a vertical line at this
    value; requires a scale.
    """
    height = ROW * len(rows) + 6
    width = WIDTH - LEFT - RIGHT
    parts = []
    for number, bar in enumerate(rows):
        y, x = 4 + ROW * number, float(LEFT)
        whole = scale or sum(value for _, value, _ in bar.segments) or 1.0
        label, full_label = escape(_shorten(bar.label)), escape(bar.label)
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{label}'
            f"<title>{full_label}</title></text>"
        )
        for name, value, color in bar.segments:
            length = value / whole * width
            title = escape(f"{bar.label}\n{name}: {show(value)}")
            if length > 0.05:
                box = f'x="{x:.2f}" y="{y}" width="{length:.2f}" height="{ROW - 9}"'
                parts.append(f'<rect class="segment {color}" {box}><title>{title}</title></rect>')
            x += length
        parts.append(f'<text class="strong" x="{x + 8:.1f}" y="{y + 15}">{escape(bar.end)}</text>')
    if scale and limit:
        x = LEFT + limit / scale * width
        parts.append(f'<line class="event" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(parts)}</svg>"
    )


def _shorten(label: str, length: int = 22) -> str:
    return label if len(label) <= length else f"…{label[1 - length :]}"
