"""Bar charts as SVG: groups stacked vertically, the longest bar of a group as wide as the plot."""

from html import escape

COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
"""Distinguishable with color blindness (Okabe and Ito)."""
WIDTH, LEFT, RIGHT, ROW, GAP, TOP = 900, 390, 110, 18, 10, 34


def bar_plot(title: str, groups: list[tuple[str, list[tuple[str, float]]]]) -> str:
    """SVG of groups [(name, [(label, value)])].

    The values of a group share a unit. Groups without values are omitted.
    """
    groups = [(name, bars) for name, bars in groups if bars]
    parts, y = [f'<text x="12" y="20" font-size="14">{escape(title)}</text>'], TOP
    for name, bars in groups:
        most = max(value for _, value in bars) or 1.0
        parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        for number, (label, value) in enumerate(bars):
            width = max(value / most * (WIDTH - LEFT - RIGHT - 90), 1.0)
            color = COLORS[number % len(COLORS)]
            text = f"{value:,.4g} {escape(label)}"
            parts.append(
                f'<rect x="{LEFT}" y="{y + 2}" width="{width:.1f}" height="{ROW - 4}"'
                f' fill="{color}"/>'
                f'<text x="{LEFT + width + 6:.1f}" y="{y + 13}">{text}</text>'
            )
            y += ROW
        y += GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 6}"'
        ' font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )
