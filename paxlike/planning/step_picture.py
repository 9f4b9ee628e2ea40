"""The simulated step as an SVG picture: the device and each link as lanes over time."""

from html import escape

from paxlike.accounting.report.plot import ticks
from paxlike.accounting.units import si
from paxlike.planning.lanes import Lane, Segment

WIDTH, LEFT, RIGHT, TOP = 1180, 150, 12, 6
LANE, GAP = 30, 10
LEAST = 0.6
"""Pixels. Segments of one kind closer than this are drawn as one."""

KINDS = {
    "matrix": ("c-step", "matrix products"),
    "kernel": ("c-evaluation", "attention kernel"),
    "memory": ("c-other", "memory-bound"),
    "wait": ("no", "waits for a link (exposed)"),
    "send": ("c-checkpoint", "sends"),
}


def step_picture(lanes: list[Lane], step: float, zoom: tuple[float, float] | None) -> str:
    """A card with the whole step and, below it, the part of it between two times."""
    parts = [_lanes(lanes, 0.0, step, "the whole step")]
    if zoom:
        begin, end = zoom
        parts.append(_lanes(lanes, begin, end, f"from {si(begin, 's', 3)} to {si(end, 's', 3)}"))
    keys = "".join(
        f'<li class="{color}"><i></i><span>{escape(text)}</span></li>'
        for color, text in KINDS.values()
    )
    return (
        '<figure class="card"><h2>The simulated step on one device</h2>'
        f'<ul class="legend">{keys}</ul>{"".join(parts)}</figure>'
    )


def _lanes(lanes: list[Lane], begin: float, end: float, caption: str) -> str:
    height = TOP + len(lanes) * (LANE + GAP) + 20
    scale = (WIDTH - LEFT - RIGHT) / (end - begin)
    shapes = []
    for t in ticks(0, 1e3 * (end - begin), 10):
        x = LEFT + t * 1e-3 * scale
        bottom = height - 20
        shapes.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        shapes.append(f'<text x="{x:.1f}" y="{height - 5}" text-anchor="middle">{t:g} ms</text>')
    for row, lane in enumerate(lanes):
        y = TOP + row * (LANE + GAP)
        name = escape(lane.name)
        shapes.append(f'<text class="strong" x="0" y="{y + LANE / 2 + 4:.1f}">{name}</text>')
        for left, right, segment in _merged(lane.segments, begin, end, scale):
            shapes.append(
                f'<rect class="{KINDS[segment.kind][0]}" fill="currentColor" x="{left:.2f}" '
                f'width="{max(right - left, 0.4):.2f}" y="{y}" height="{LANE}"><title>'
                f"{escape(segment.name)}: {si(segment.end - segment.begin, 's', 3)}</title></rect>"
            )
    box = f"0 0 {WIDTH} {height}"
    svg = f'<svg viewBox="{box}" role="img" xmlns="http://www.w3.org/2000/svg">'
    return f"{svg}{''.join(shapes)}</svg><figcaption>{escape(caption)}</figcaption>"


def _merged(
    segments: list[Segment], begin: float, end: float, scale: float
) -> list[tuple[float, float, Segment]]:
    """Returns (left, right, segment) in pixels; neighbors of one kind that are closer than a
    fraction of a pixel are joined."""
    drawn: list[tuple[float, float, Segment]] = []
    for segment in segments:
        if segment.end <= begin or segment.begin >= end:
            continue
        left = LEFT + (max(segment.begin, begin) - begin) * scale
        right = LEFT + (min(segment.end, end) - begin) * scale
        if drawn and drawn[-1][2].kind == segment.kind and left - drawn[-1][1] < LEAST:
            last = drawn[-1][2]
            if right - drawn[-1][0] < 4 * LEAST:
                joined = last._replace(end=segment.end, name="several")
                drawn[-1] = drawn[-1][0], right, joined
                continue
        drawn.append((left, right, segment))
    return drawn
