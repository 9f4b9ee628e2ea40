"""What routers report at each step: which lines of metrics.jsonl hold it, and how it is plotted.

A metric of one layer has the layer's number after its name, `expert_load/0`
(`training/router_losses.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class RouterSeries(NamedTuple):
    """How a metric of routers is shown."""

    title: str
    over_layers: Callable[..., np.ndarray]
    """Makes one curve of those of the layers."""
    is_fraction: bool = False


ROUTER_SERIES = {
    "expert_load": RouterSeries("Busiest expert / mean load", np.nanmax),
    "router_entropy": RouterSeries("Router entropy, nats", np.nanmean),
    "heads_expert_load": RouterSeries("Busiest expert of heads / mean load", np.nanmax),
    "heads_router_entropy": RouterSeries("Router entropy of heads, nats", np.nanmean),
    "dropped_choices": RouterSeries("Dropped choices of experts", np.nanmean, True),
}
"""Metric -> how it is shown, in the order of the report."""


def is_router_metric(name: str) -> bool:
    return name.partition("/")[0] in ROUTER_SERIES


def by_layer(values: dict[str, np.ndarray], metric: str) -> dict[int, np.ndarray]:
    """The values of each layer, by its number; {} if the run has none."""
    found = {}
    for name, series in values.items():
        base, _, layer = name.partition("/")
        if base == metric and layer.isdecimal():
            found[int(layer)] = series
    return dict(sorted(found.items()))


def over_layers(values: dict[str, np.ndarray], metric: str) -> np.ndarray | None:
    """One value for each step; None if the run has none."""
    layers = by_layer(values, metric)
    if not layers:
        return values.get(metric)
    stacked = np.stack(list(layers.values()))
    known = np.isfinite(stacked).any(0)
    joined = np.full(stacked.shape[1], np.nan)
    joined[known] = ROUTER_SERIES[metric].over_layers(stacked[:, known], axis=0)
    return joined
