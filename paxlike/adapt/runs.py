"""The layers that an adapter is in or that are trained, as runs of the stack. Imports no JAX."""

from typing import NamedTuple

from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, ConfigError, ModelConfig


class Run(NamedTuple):
    """Consecutive periods of the stack, all of them chosen or none."""

    begin: int
    end: int
    chosen: bool


def runs(model: ModelConfig, adapt: AdaptConfig) -> tuple[Run, ...]:
    """The runs of periods, in order. Raises ConfigError for `adapt.layers` that do not exist, or
    are not whole periods of the pattern."""
    period = len(model.block_kinds)
    count = model.layers // period
    if not adapt.layers:
        return (Run(0, count, True),)
    chosen = set(adapt.layers)
    if model.layers % period:
        raise ConfigError(
            f"adapt.layers is {' '.join(map(str, adapt.layers))}, but model.layers {model.layers} "
            f"is not a multiple of the {period} blocks of model.pattern; adapt all layers."
        )
    if unknown := sorted(layer for layer in chosen if not 0 <= layer < model.layers):
        raise ConfigError(
            f"adapt.layers has {unknown[0]}; the model has layers 0 to {model.layers - 1}."
        )
    marks = []
    for start in range(0, model.layers, period):
        inside = [layer in chosen for layer in range(start, start + period)]
        if any(inside) and not all(inside):
            raise ConfigError(
                f"adapt.layers has {start + inside.index(True)}, but not all of layers {start} to "
                f"{start + period - 1}, which are one period of model.pattern; give whole periods."
            )
        marks.append(inside[0])
    found: list[Run] = []
    for place, mark in enumerate(marks):
        if found and found[-1].chosen == mark:
            found[-1] = found[-1]._replace(end=place + 1)
        else:
            found.append(Run(place, place + 1, mark))
    return tuple(found)


def trained_layers(model: ModelConfig, adapt: AdaptConfig) -> dict[str, int]:
    """Group of blocks -> the leading size of its trained stacks."""
    chosen = sum(run.end - run.begin for run in runs(model, adapt) if run.chosen)
    return {name: chosen if adapt.layers else layers for name, _, layers in groups(model)}
