"""Two plots as SVG text, for a page in one file."""

from html import escape

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999")
"""Told apart by the color-blind as well (Okabe and Ito)."""


def bar(parts: list[tuple[str, float, str]], limit: float | None, width: int = 860) -> str:
    """One bar of parts (name, size, size as text), with a line at the limit."""
    total = sum(size for _, size, _ in parts)
    scale = (width - 20) / max(total, limit or 0, 1e-9)
    shapes, x = [], 10.0
    for i, (name, size, text) in enumerate(parts):
        color = COLORS[i % len(COLORS)]
        title = f"<title>{escape(name)}: {escape(text)}</title>"
        shapes.append(
            f'<rect x="{x:.1f}" y="10" width="{max(size * scale, 0.5):.1f}" height="34" fill="{color}">{title}</rect>'
        )
        x += size * scale
    if limit:
        at = 10 + limit * scale
        shapes.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="2" y2="52" stroke="currentColor" stroke-width="2" stroke-dasharray="4 3"/>'
        )
    legend, row = [], 0
    for i, (name, _, text) in enumerate(parts):
        column, row = i % 3, i // 3
        left, top = 10 + column * (width // 3), 66 + 20 * row
        legend.append(f'<rect x="{left}" y="{top}" width="12" height="12" fill="{COLORS[i % len(COLORS)]}"/>')
        legend.append(f'<text x="{left + 18}" y="{top + 11}">{escape(name)}: {escape(text)}</text>')
    return _svg(width, 90 + 20 * row, shapes + legend, "memory on each device, by part")


def scatter(
    points: list[tuple[float, float, str, str]], limit: float | None, width: int = 860, height: int = 360
) -> str:
    """Points (memory in GiB, MFU in %, series, label), memory to the right, MFU upward, a line at the memory's limit."""
    left, right, top, bottom = 60, 20, 20, 60
    x_most = 1.05 * max([limit or 0, *(x for x, *_ in points)], default=1)
    y_most = 1.15 * max((y for _, y, *_ in points), default=1)
    place_x = lambda x: left + x / x_most * (width - left - right)  # noqa: E731
    place_y = lambda y: height - bottom - y / y_most * (height - top - bottom)  # noqa: E731
    series = list(dict.fromkeys(name for _, _, name, _ in points))
    shapes = [
        f'<line x1="{left}" x2="{width - right}" y1="{height - bottom}" y2="{height - bottom}" stroke="currentColor"/>',
        f'<line x1="{left}" x2="{left}" y1="{top}" y2="{height - bottom}" stroke="currentColor"/>',
        f'<text x="{width / 2}" y="{height - 26}" text-anchor="middle">GiB on each device</text>',
        f'<text x="14" y="{height / 2}" text-anchor="middle" transform="rotate(-90 14 {height / 2})">predicted MFU, %</text>',
    ]
    for i in range(6):
        x, y = x_most * i / 5, y_most * i / 5
        shapes.append(f'<text x="{place_x(x):.1f}" y="{height - bottom + 16}" text-anchor="middle">{x:.3g}</text>')
        shapes.append(f'<text x="{left - 6}" y="{place_y(y) + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    if limit:
        at = place_x(limit)
        shapes.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - bottom}" stroke="currentColor" stroke-dasharray="4 3"/>'
        )
        shapes.append(f'<text x="{at - 4:.1f}" y="{top + 10}" text-anchor="end">usable</text>')
    for x, y, name, label in points:
        color = COLORS[series.index(name) % len(COLORS)]
        shapes.append(
            f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="5" fill="{color}"><title>{escape(label)}</title></circle>'
        )
    for i, name in enumerate(series):
        at = left + 10 + 150 * i
        shapes.append(f'<circle cx="{at}" cy="{height - 8}" r="5" fill="{COLORS[i % len(COLORS)]}"/>')
        shapes.append(f'<text x="{at + 10}" y="{height - 4}">{escape(name)}</text>')
    return _svg(width, height, shapes, "predicted MFU against memory")


def _svg(width: int, height: int, shapes: list[str], title: str) -> str:
    return f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {height}" width="100%">{"".join(shapes)}</svg>'
