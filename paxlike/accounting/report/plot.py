"""Line plots over steps as inline SVG without scripts.

Pointing at a band of steps shows its values (SVG `<title>`). Curves with many steps are thinned:
each bucket of neighboring steps keeps its lowest and highest value, so that spikes stay visible.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from html import escape

import numpy as np

from paxlike.accounting.report.smoothing import half_life, smooth, thin

LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 26
WIDTH = 620
"""Width of a plot that takes half of the page, in SVG units (about pixels)."""
BANDS = 72
"""Number of bands that show their values."""


@dataclasses.dataclass(frozen=True)
class Curve:
    label: str
    color: int
    """Series color of the style sheet."""
    steps: np.ndarray
    values: np.ndarray
    dashed: bool = False
    raw: bool = True
    """Also draw the value of every step faintly behind the smoothed line."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """A single point, such as an evaluation."""

    label: str
    color: int
    step: int
    value: float


def plot(
    curves: Iterable[Curve],
    show: Callable[[float], str],
    *,
    marks: Iterable[Mark] = (),
    lines: Iterable[tuple[int, str]] = (),
    zero: bool = True,
    width: int = WIDTH,
    height: int = 240,
) -> tuple[str, str]:
    """Returns (SVG, caption), or ("", "") if no curve has a finite value.

    The caption states the smoothing and how many values are above the axis. show: formats a value.
    lines: (step, description) of each vertical line. zero: start the axis at 0 and cut it above
    most values, so that outliers do not flatten the curve. Otherwise the axis covers all values,
    logarithmically if they span more than a factor of 4.
    """
    curves = [c for c in (_finite(curve) for curve in curves) if c.steps.size]
    marks = [mark for mark in marks if math.isfinite(mark.value)]
    if not curves:
        return "", ""
    values = np.concatenate([c.values for c in curves] + [np.array([m.value for m in marks])])
    frame = _Frame(curves, _axis(values, zero, height), width, height)
    parts = [_grid(frame, show)]
    parts += [_event(frame, step, description) for step, description in lines]
    parts += [_path(frame, c, c.values, "raw") for c in curves if c.raw]
    parts += [
        _path(frame, c, smooth(c.values, half_life(c.steps.size)), "dash" if c.dashed else "line")
        for c in curves
    ]
    parts += [_circle(frame, mark, show) for mark in marks]
    parts += _bands(frame, curves, show)
    svg = (
        f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(parts)}</svg>"
    )
    return svg, _caption(curves, values, frame.axis, show)


def _caption(curves: list[Curve], values: np.ndarray, axis: "_Axis", show: Callable) -> str:
    faint = "faint: every step; " if any(c.raw for c in curves) else ""
    spans = " or ".join(f"{n:,}" for n in sorted({half_life(c.steps.size) for c in curves}))
    caption = (
        f"{faint}line: two-sided exponential average, half-life {spans} "
        f"{'step' if spans == '1' else 'steps'}{', logarithmic scale' if axis.log else ''}"
    )
    above = int((values > axis.high).sum())
    if above:
        caption += f"; {above:,} above the axis, maximum {show(float(values.max()))}"
    return caption


# ---- axes ----------------------------------------------------------------------------------------


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` evenly spaced round numbers between low and high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    return [
        round(k * step, 12)
        for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


class _Axis:
    """The vertical axis: converts values to SVG y coordinates."""

    def __init__(self, low: float, high: float, log: bool, height: int):
        if not high > low:
            low, high = low - 0.05 * abs(low or 1), high + 0.05 * abs(high or 1)
        margin = (high / low) ** 0.04 if log else 0.04 * (high - low)
        self.low = low / margin if log else low - margin * (low != 0)
        self.high = high * margin if log else high + margin
        self.log, self._bottom, self._top = log, height - BOTTOM, TOP

    def __call__(self, values: object) -> np.ndarray:
        scale = np.log if self.log else np.asarray
        low, high = scale(self.low), scale(self.high)
        at = (scale(np.clip(np.asarray(values, float), self.low, self.high)) - low) / (high - low)
        return self._bottom - at * (self._bottom - self._top)

    def ticks(self) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        multiples = (1,) if self.high > 100 * self.low else (1, 1.5, 2, 3, 4, 5, 6, 8)
        candidates = [m * 10.0**p for p in powers for m in multiples]
        return [value for value in candidates if self.low <= value <= self.high]


def _axis(values: np.ndarray, zero: bool, height: int) -> _Axis:
    if zero:
        # A few slow steps must not flatten the curve.
        high = min(values.max(), 1.5 * np.percentile(values, 99))
        return _Axis(0.0, float(high) or 1.0, False, height)  # all values may be 0
    low, high = float(values.min()), float(values.max())
    return _Axis(low, high, low > 0 and high > 4 * low, height)


class _Frame:
    """The plot's area: converts steps to SVG x coordinates."""

    def __init__(self, curves: list[Curve], axis: _Axis, width: int, height: int):
        self.axis, self.width, self.height = axis, width, height
        self.first = min(int(c.steps[0]) for c in curves)
        self.last = max(max(int(c.steps[-1]) for c in curves), self.first + 1)

    def x(self, step: object) -> np.ndarray:
        fraction = (np.asarray(step, float) - self.first) / (self.last - self.first)
        return LEFT + fraction * (self.width - LEFT - RIGHT)


# ---- elements ------------------------------------------------------------------------------------


def _finite(curve: Curve) -> Curve:
    finite = np.isfinite(curve.values)
    return dataclasses.replace(curve, steps=curve.steps[finite], values=curve.values[finite])


def _event(frame: _Frame, step: int, description: str) -> str:
    x = float(frame.x(step))
    return (
        f'<line class="event" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{frame.height - BOTTOM}">'
        f"<title>{escape(description)}</title></line>"
    )


def _path(frame: _Frame, curve: Curve, values: np.ndarray, style: str) -> str:
    steps, values = thin(curve.steps, values)
    coordinates = zip(frame.x(steps).tolist(), frame.axis(values).tolist(), strict=True)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in coordinates)
    return f'<polyline class="{style} s{curve.color}" points="{points}"/>'


def _circle(frame: _Frame, mark: Mark, show: Callable[[float], str]) -> str:
    x, y = float(frame.x(mark.step)), float(frame.axis(mark.value))
    title = escape(f"{mark.label}, step {mark.step:,}: {show(mark.value)}")
    return (
        f'<circle class="mark s{mark.color}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">'
        f"<title>{title}</title></circle>"
    )


def _grid(frame: _Frame, show: Callable[[float], str]) -> str:
    """Draws the grid lines, the horizontal axis and the labels of both axes."""
    left, right, bottom = LEFT, frame.width - RIGHT, frame.height - BOTTOM
    label_y = frame.height - 8
    parts = [f'<text x="{left - 7}" y="{label_y}" text-anchor="end">step</text>']
    for value in frame.axis.ticks():
        y = float(frame.axis(value))
        label = escape(show(value))
        parts += [
            f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<text x="{left - 7}" y="{y + 3.8:.1f}" text-anchor="end">{label}</text>',
        ]
    for step in ticks(frame.first, frame.last, 6):
        if step == int(step):
            x, label = float(frame.x(step)), _short(int(step))
            parts.append(f'<text x="{x:.1f}" y="{label_y}" text-anchor="middle">{label}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    return "".join(parts)


def _short(step: int) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 and step % 100 == 0 else f"{step:,}"


def _bands(frame: _Frame, curves: list[Curve], show: Callable[[float], str]) -> list[str]:
    """Draws invisible bands with titles: mean, minimum and maximum of each curve in the band."""
    first, last = frame.first, frame.last
    edges = np.unique(np.linspace(first, last + 1, min(BANDS, last - first + 1) + 1).astype(int))
    parts = []
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        title = [f"step {begin:,}" if end == begin + 1 else f"steps {begin:,} to {end - 1:,}"]
        for curve in curves:
            a, b = np.searchsorted(curve.steps, (begin, end))
            if a < b:
                inside = curve.values[a:b]
                low, high = show(float(inside.min())), show(float(inside.max()))
                span = f" ({low} … {high})" if b > a + 1 else ""
                title.append(f"{curve.label}: {show(float(inside.mean()))}{span}")
        if len(title) == 1:
            continue
        left = float(frame.x(begin - 0.5 * (begin > first)))
        width = max(float(frame.x(min(end - 0.5, last))) - left, 1)
        parts.append(
            f'<rect class="band" x="{left:.1f}" y="{TOP}" width="{width:.1f}" '
            f'height="{frame.height - BOTTOM - TOP}"><title>{escape(chr(10).join(title))}</title>'
            "</rect>"
        )
    return parts
