"""The page's plots of routers: a curve for each layer of one run, or one for each of several."""

from collections.abc import Callable

import numpy as np

from paxlike.accounting.history import History
from paxlike.accounting.report.charts import COLORS, chart, percent, restarts
from paxlike.accounting.report.plot import Curve, plot
from paxlike.accounting.router_series import ROUTER_SERIES, by_layer, over_layers

Named = list[tuple[str, History]]


def router_charts(histories: list[History], names: list[str]) -> str:
    """Returns the cards of the metrics that at least one run has. names: labels of the runs."""
    named = list(zip(names, histories, strict=True))
    lines = restarts(histories[0]) if len(named) == 1 else []
    cards = ""
    for metric, series in ROUTER_SERIES.items():
        curves = _layers(named[0][1], metric) if len(named) == 1 else _runs(named, metric)
        keys = [(curve.label, curve.color, "") for curve in curves] if len(curves) > 1 else []
        show: Callable[[float], str] = percent if series.is_fraction else _number
        cards += chart(series.title, plot(curves, show, lines=lines), keys)
    return cards


def _number(value: float) -> str:
    return f"{value:.3g}"


def _layers(history: History, metric: str) -> list[Curve]:
    """A curve for each layer; with more layers than colors, the lowest, the mean and the highest.

    Or the one curve of a metric that is not given by layer.
    """

    def curve(label: str, color: int, values: np.ndarray) -> Curve:
        return Curve(label, color, history.steps, values, raw=False)

    layers = by_layer(history.routers, metric)
    if not layers:
        values = history.routers.get(metric)
        return [] if values is None else [curve("all layers", 0, values)]
    if len(layers) <= COLORS:
        return [curve(f"layer {n}", n % COLORS, values) for n, values in layers.items()]
    stacked = np.stack(list(layers.values()))
    known = np.isfinite(stacked).any(0)
    curves = []
    reductions: dict[str, Callable[..., np.ndarray]] = {
        "lowest layer": np.nanmin,
        "mean": np.nanmean,
        "highest layer": np.nanmax,
    }
    for color, (label, reduce) in enumerate(reductions.items()):
        joined = np.full(stacked.shape[1], np.nan)
        joined[known] = reduce(stacked[:, known], axis=0)
        curves.append(curve(label, color, joined))
    return curves


def _runs(named: Named, metric: str) -> list[Curve]:
    found = [
        (name, k, history, over_layers(history.routers, metric))
        for k, (name, history) in enumerate(named)
    ]
    return [
        Curve(name, k % COLORS, history.steps, values)
        for name, k, history, values in found
        if values is not None
    ]
