"""Stacked horizontal bars as inline SVG."""

import dataclasses
from html import escape

WIDTH, LEFT, RIGHT, ROW = 620, 132, 92, 30


@dataclasses.dataclass(frozen=True)
class Bar:
    label: str
    segments: tuple[tuple[str, float, str], ...]
    """(name, value, color class) from left to right."""
    end: str
    """Beside the bar: its sum, say."""


def bars(rows: list[Bar], show, *, scale: float | None = None, limit: float | None = None) -> str:
    """Bars beneath each other. scale: the value of a full width; None makes every bar as long as that, for shares of its own sum.

    limit: a value of the scale where a line stands.
    """
    height = ROW * len(rows) + 6
    width = WIDTH - LEFT - RIGHT
    parts = []
    for number, bar in enumerate(rows):
        y, at = 4 + ROW * number, float(LEFT)
        whole = scale or sum(value for _, value, _ in bar.segments) or 1.0
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{escape(_cut(bar.label))}<title>{escape(bar.label)}</title></text>'
        )
        for name, value, color in bar.segments:
            length = value / whole * width
            told = escape(f"{bar.label}\n{name}: {show(value)}")
            if length > 0.05:
                place = f'x="{at:.2f}" y="{y}" width="{length:.2f}" height="{ROW - 9}"'
                parts.append(f'<rect class="segment {color}" {place}><title>{told}</title></rect>')
            at += length
        parts.append(f'<text class="strong" x="{at + 8:.1f}" y="{y + 15}">{escape(bar.end)}</text>')
    if scale and limit:
        at = LEFT + limit / scale * width
        parts.append(f'<line class="event" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{height}"/>')
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'


def _cut(label: str, most: int = 22) -> str:
    return label if len(label) <= most else f"…{label[1 - most :]}"
