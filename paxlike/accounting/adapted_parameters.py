"""The trained parameters of a model of which a part is frozen (`config.adapt`)."""

import dataclasses
import math

from paxlike.accounting.adapted_flops import chosen_layers
from paxlike.accounting.parameters import Weight, weights
from paxlike.architecture.adapters import added_weights, trained_whole
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, ModelConfig
from paxlike.parallel.axes import is_stacked

ADAPTERS = "adapters"
"""The part that the weights of adapters are counted under."""


def trained_weights(model: ModelConfig, adapt: AdaptConfig) -> tuple[Weight, ...]:
    """Weights of the base that are trained, and those of adapters, in the chosen layers."""
    if not adapt.active:
        return weights(model)
    whole, share = trained_whole(model, adapt), chosen_layers(model, adapt) / model.layers
    found = [
        dataclasses.replace(w, copies=round(w.copies * share)) if is_stacked(w.name) else w
        for w in weights(model)
        if w.name in whole
    ]
    added = added_weights(model, adapt)
    for spec in added.outer:
        found.append(Weight(spec.name, ADAPTERS, spec.shape(model), 1, spec.shape(model)))
    for group, _, layers in groups(model):
        for spec in added.layers.get(group, ()):
            shape, copies = spec.shape(model), round(layers * share)
            found.append(Weight(f"{group}/{spec.name}", ADAPTERS, shape, copies, shape))
    return tuple(found)


def trained_shapes(model: ModelConfig, adapt: AdaptConfig) -> list[tuple[str, tuple[int, ...]]]:
    """(checkpoint name, stored shape) of every trained parameter."""
    return [
        (w.name, (w.copies,) * is_stacked(w.name) + (w.stored_shape or w.shape))
        for w in trained_weights(model, adapt)
    ]


def trained_count(model: ModelConfig, adapt: AdaptConfig) -> int:
    """The number of trained parameters, without rows that pad the vocabulary."""
    return sum(w.copies * math.prod(w.shape) for w in trained_weights(model, adapt))
