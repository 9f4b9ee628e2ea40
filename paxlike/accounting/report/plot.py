"""Line plots over steps as inline SVG, without any script: values show when the pointer rests on a band of steps (SVG `<title>`).

Curves of many steps are thinned before they are drawn: of each run of neighbors the lowest and the highest stay, so that no spike is lost.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from html import escape

import numpy as np

LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 26
WIDTH = 620
"""Of a plot that takes half of the page, in its own units: about pixels."""
BUCKETS = 360
"""Runs of neighbors that a curve is thinned to, two points each."""
BANDS = 72
"""Places of a plot that tell their values."""


@dataclasses.dataclass(frozen=True)
class Curve:
    label: str
    color: int
    """Number of the series, which is a color of the style sheet."""
    steps: np.ndarray
    values: np.ndarray
    dashed: bool = False
    raw: bool = True
    """Also draw each step faintly behind the smoothed line."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """A point beside the curves, such as an evaluation."""

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
    """(SVG, what to say beneath it: smoothing, and values above the axis). ("", "") where no curve has a value.

    lines: (step, what happened there). zero: the axis begins at 0 and ends where all but the outermost values do; otherwise it
    holds every value, on a logarithmic scale where they span more than a factor of 4.
    """
    curves = [c for c in (_finite(curve) for curve in curves) if c.steps.size]
    marks = [mark for mark in marks if math.isfinite(mark.value)]
    if not curves:
        return "", ""
    values = np.concatenate([c.values for c in curves] + [np.array([m.value for m in marks])])
    low, high = (0.0, _robust_top(values)) if zero else (float(values.min()), float(values.max()))
    log = not zero and low > 0 and high > 4 * low
    axis = _Axis(low, high, log, height)
    first = min(int(c.steps[0]) for c in curves)
    last = max(max(int(c.steps[-1]) for c in curves), first + 1)
    x = lambda step: LEFT + (np.asarray(step, float) - first) / (last - first) * (width - LEFT - RIGHT)  # noqa: E731
    parts = [_grid(axis, show, x, first, last, width, height)]
    for step, what in lines:
        at = float(x(step))
        parts.append(
            f'<line class="event" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{height - BOTTOM}"><title>{escape(what)}</title></line>'
        )
    parts += [_path(c, c.values, x, axis, "raw") for c in curves if c.raw]
    parts += [_path(c, smooth(c.values, _half_life(c)), x, axis, "dash" if c.dashed else "line") for c in curves]
    parts += [_circle(mark, x, axis, show) for mark in marks]
    parts += _bands(curves, show, x, first, last, height)
    log_scale = ", logarithmic scale" if log else ""
    faint = "faint: every step; " if any(c.raw for c in curves) else ""
    spans = " or ".join(f"{n:,}" for n in sorted({_half_life(c) for c in curves}))
    told = f"{faint}line: exponential mean to both sides, half-life {spans} {'step' if spans == '1' else 'steps'}{log_scale}"
    above = int((values > axis.high).sum())
    if above:
        told += f"; {above:,} above the axis, the highest {show(float(values.max()))}"
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    return svg, told


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most two points of each of BUCKETS runs of neighbors, the lowest and the highest, in order; first and last stay."""
    if steps.size <= 2 * BUCKETS:
        return steps, values
    edges = np.linspace(0, steps.size, BUCKETS + 1).astype(int)
    chosen = {0, steps.size - 1}
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        chosen |= {begin + int(values[begin:end].argmin()), begin + int(values[begin:end].argmax())}
    picked = np.array(sorted(chosen))
    return steps[picked], values[picked]


def smooth(values: np.ndarray, half_life: float) -> np.ndarray:
    """Exponential mean to both sides, so that the line does not lag: a value `half_life` places away weighs half as much as the own."""
    return (_mean_so_far(values.tolist(), half_life) + _mean_so_far(values.tolist()[::-1], half_life)[::-1]) / 2


def _half_life(curve: Curve) -> int:
    return max(1, curve.steps.size // 80)


def _mean_so_far(values: list[float], half_life: float) -> np.ndarray:
    keep, mean, weight = 0.5 ** (1 / half_life), 0.0, 0.0
    smoothed = []
    for value in values:
        mean, weight = keep * mean + value, keep * weight + 1
        smoothed.append(mean / weight)
    return np.array(smoothed)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about `count`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


class _Axis:
    """Values to heights."""

    def __init__(self, low: float, high: float, log: bool, height: int):
        if not high > low:
            low, high = low - 0.05 * abs(low or 1), high + 0.05 * abs(high or 1)
        margin = (high / low) ** 0.04 if log else 0.04 * (high - low)
        self.low = low / margin if log else low - margin * (low != 0)
        self.high = high * margin if log else high + margin
        self.log, self._bottom, self._top = log, height - BOTTOM, TOP

    def __call__(self, values: object) -> np.ndarray:
        change = np.log if self.log else np.asarray
        low, high = change(self.low), change(self.high)
        at = (change(np.clip(np.asarray(values, float), self.low, self.high)) - low) / (high - low)
        return self._bottom - at * (self._bottom - self._top)

    def ticks(self) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        few = self.high > 100 * self.low
        tried = [m * 10.0**p for p in powers for m in ((1,) if few else (1, 1.5, 2, 3, 4, 5, 6, 8))]
        return [value for value in tried if self.low <= value <= self.high]


def _robust_top(values: np.ndarray) -> float:
    """Where an axis ends that a few slow steps shall not flatten."""
    return float(min(values.max(), 1.5 * np.percentile(values, 99)))


def _finite(curve: Curve) -> Curve:
    good = np.isfinite(curve.values)
    return dataclasses.replace(curve, steps=curve.steps[good], values=curve.values[good])


def _path(curve: Curve, values: np.ndarray, x: Callable, axis: _Axis, kind: str) -> str:
    steps, values = thin(curve.steps, values)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x(steps).tolist(), axis(values).tolist(), strict=True))
    return f'<polyline class="{kind} s{curve.color}" points="{points}"/>'


def _circle(mark: Mark, x: Callable, axis: _Axis, show: Callable) -> str:
    told = escape(f"{mark.label}, step {mark.step:,}: {show(mark.value)}")
    return (
        f'<circle class="mark s{mark.color}" cx="{float(x(mark.step)):.1f}" cy="{float(axis(mark.value)):.1f}" r="4.5">'
        f"<title>{told}</title></circle>"
    )


def _grid(axis: _Axis, show: Callable, x: Callable, first: int, last: int, width: int, height: int) -> str:
    parts = [f'<text x="{LEFT - 7}" y="{height - 8}" text-anchor="end">step</text>']
    for value in axis.ticks():
        y = float(axis(value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 3.8:.1f}" text-anchor="end">{escape(show(value))}</text>')
    for step in ticks(first, last, 6):
        if step == int(step):
            parts.append(
                f'<text x="{float(x(step)):.1f}" y="{height - 8}" text-anchor="middle">{_short(int(step))}</text>'
            )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{height - BOTTOM}" y2="{height - BOTTOM}"/>')
    return "".join(parts)


def _short(step: int) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 and step % 100 == 0 else f"{step:,}"


def _bands(curves: list[Curve], show: Callable, x: Callable, first: int, last: int, height: int) -> list[str]:
    """Strips of the plot that tell the values of their steps."""
    edges = np.unique(np.linspace(first, last + 1, min(BANDS, last - first + 1) + 1).astype(int))
    parts = []
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        told = [f"step {begin:,}" if end == begin + 1 else f"steps {begin:,} to {end - 1:,}"]
        for curve in curves:
            a, b = np.searchsorted(curve.steps, (begin, end))
            if a < b:
                inside = curve.values[a:b]
                span = f" ({show(float(inside.min()))} … {show(float(inside.max()))})" if b > a + 1 else ""
                told.append(f"{curve.label}: {show(float(inside.mean()))}{span}")
        left, right = float(x(begin - 0.5 * (begin > first))), float(x(min(end - 0.5, last)))
        if len(told) > 1:
            parts.append(
                f'<rect class="band" x="{left:.1f}" y="{TOP}" width="{max(right - left, 1):.1f}" height="{height - BOTTOM - TOP}">'
                f"<title>{escape(chr(10).join(told))}</title></rect>"
            )
    return parts
