"""What a kind of adapter declares. Imports no JAX."""

from typing import NamedTuple

from paxlike.architecture.branch import WeightSpec


class Added(NamedTuple):
    """The weights of an adapter, which are trained in float32."""

    layers: dict[str, tuple[WeightSpec, ...]] = {}  # noqa: RUF012 - never changed in place
    """Group of blocks -> weights of each of its layers, stacked like the group's own."""
    outer: tuple[WeightSpec, ...] = ()
    """Weights outside of the layers."""
    targets: frozenset[str] = frozenset()
    """Checkpoint names of the frozen weights that it changes the form of."""
