"""Which weights the loop over layers gathers one layer ahead (`nn/layer_loop.py`).

They are those that a layer multiplies first. In the forward pass the largest one that reads the
stream is enough, because its first product takes as long as the first pieces of the stream travel.
In the backward pass they are those that write to the stream.
"""

import math

import jax

from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.stack import Group
from paxlike.config import ModelConfig
from paxlike.nn.collectives import is_gathered
from paxlike.nn.layer_loop import Ahead, Name
from paxlike.nn.numerics import Numerics
from paxlike.nn.weight import places_of
from paxlike.parallel import rules
from paxlike.parallel.mesh import axis_sizes


def first_weights(
    stack: tuple[Group, ...], stacked: dict, config: ModelConfig, numerics: Numerics
) -> Ahead | None:
    """Of the loop over these groups, an iteration of which runs a layer of each. None: there is
    nothing to gather ahead. stacked: the parameters by group.
    """
    # With `none` this loop would keep arrays once for each layer that are equal in all of them.
    if not numerics.ahead or config.remat == "none" or config.quant.active:
        return None
    # With one shard of the model nothing but weights travels, and compilers do better without it.
    if axis_sizes()["model"] == 1 or stack[0].layers == 1:
        return None
    places: dict[Name, tuple[rules.Axis, ...]] = {}

    def names(group: Group, specs: list[WeightSpec]) -> tuple[Name, ...]:
        found = []
        for spec in specs:
            name = group.name, spec.name
            is_plain = isinstance(stacked[group.name][spec.name], jax.Array)
            if is_plain and is_gathered(places_of(spec, config)):
                places[name] = places_of(spec, config)
                found.append(name)
        return tuple(found)

    first, last = stack[0], stack[-1]
    reading = first.block.first_kernels(config)
    largest = sorted(reading, key=lambda spec: math.prod(spec.shape(config)))[-1:]
    forward, backward = names(first, largest), names(last, last.block.last_kernels(config))
    return Ahead(forward, backward, places, numerics.compute) if places else None
