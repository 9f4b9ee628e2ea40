"""What a kind of adapter declares. Imports no JAX."""

from collections.abc import Mapping
from typing import NamedTuple

from paxlike.architecture.branch import WeightSpec
from paxlike.config import ModelConfig
from paxlike.parallel import rules


class Derived(NamedTuple):
    """A frozen float32 array that is computed from a kernel of the base when a run starts."""

    spec: WeightSpec
    kernel: WeightSpec

    def places(self, model: ModelConfig, mesh: Mapping[str, int]) -> tuple[rules.Axis, ...]:
        """The mesh axes of its dimensions in one layer: those of the kernel's, and R is whole."""
        letters = self.kernel.letters
        places = rules.weight_spec(letters, self.kernel.shape(model), mesh)
        at = dict(zip(letters, places, strict=True))
        return tuple(at.get(letter) for letter in self.spec.letters)


class Added(NamedTuple):
    """The weights of an adapter, which are trained in float32."""

    layers: dict[str, tuple[WeightSpec, ...]] = {}  # noqa: RUF012 - never changed in place
    """Group of blocks -> weights of each of its layers, stacked like the group's own."""
    outer: tuple[WeightSpec, ...] = ()
    """Weights outside of the layers."""
    derived: dict[str, tuple[Derived, ...]] = {}  # noqa: RUF012 - never changed in place
    """Group of blocks -> what is computed from each of its layers' kernels."""
    targets: frozenset[str] = frozenset()
    """Checkpoint names of the frozen weights that it changes the form of."""

    @property
    def composed(self) -> frozenset[str]:
        """Of these, those that each layer composes from what is derived, of which it also computes
        the whole gradient."""
        return frozenset(f"{g}/{d.kernel.name}" for g, all_ in self.derived.items() for d in all_)
