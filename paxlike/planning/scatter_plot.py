"""A sweep as an SVG scatter plot: predicted MFU against memory, in the report's style."""

from html import escape

from paxlike.accounting.report.charts import COLORS
from paxlike.accounting.report.plot import ticks

WIDTH, HEIGHT = 1180, 380
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 14, 44


def scatter(points: list[tuple[float, float, str, str]], limit: float | None) -> str:
    """A card with points (memory in GiB, MFU in %, series, label) and a line at the memory
    limit.
    """
    x_most = 1.05 * max([limit or 0, *(x for x, *_ in points)])
    y_most = 1.15 * max(y for _, y, *_ in points)
    bottom = HEIGHT - BOTTOM
    place_x = lambda x: LEFT + x / x_most * (WIDTH - LEFT - RIGHT)  # noqa: E731
    place_y = lambda y: bottom - y / y_most * (bottom - TOP)  # noqa: E731
    shapes = [
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">GiB on each device</text>'
    ]
    for y in ticks(0, y_most):
        shapes.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
            f'y1="{place_y(y):.1f}" y2="{place_y(y):.1f}"/>'
        )
        shapes.append(
            f'<text x="{LEFT - 7}" y="{place_y(y) + 4:.1f}" text-anchor="end">{y:g} %</text>'
        )
    for x in ticks(0, x_most, 8):
        shapes.append(
            f'<text x="{place_x(x):.1f}" y="{bottom + 16}" text-anchor="middle">{x:g}</text>'
        )
    shapes.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    )
    if limit:
        at = place_x(limit)
        shapes.append(f'<line class="event" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        shapes.append(f'<text x="{at - 5:.1f}" y="{TOP + 10}" text-anchor="end">usable</text>')
    series = {
        name: number % COLORS
        for number, name in enumerate(dict.fromkeys(name for _, _, name, _ in points))
    }
    for x, y, name, label in points:
        place = f'cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="5.5"'
        shapes.append(
            f'<circle class="point s{series[name]}" {place}><title>{escape(label)}</title></circle>'
        )
    keys = "".join(
        f'<li class="s{color}"><i></i><span>{escape(name)}</span></li>'
        for name, color in series.items()
    )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg">{"".join(shapes)}</svg>'
    return (
        '<figure class="card"><h2>Predicted MFU against memory</h2>'
        f'<ul class="legend">{keys}</ul>{svg}</figure>'
    )
