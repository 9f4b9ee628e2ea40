"""What tuning singular values (SVDiff, arXiv 2303.11305) adds to the declarations of a model.

Of a kernel `wq_DNH`, a matrix of inputs x outputs, it stores the singular value decomposition
U diag(values) V^T, frozen: `wq_singular_left_DR`, `wq_singular_values_R` and
`wq_singular_right_RNH`. R is the smaller dimension of the matrix. A vector `wq_singular_shift_R` is
trained. Imports no JAX.
"""

from typing import NamedTuple

from paxlike.architecture.added import Added, Derived
from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.lora import input_letters, inputs_outputs
from paxlike.architecture.weight_names import targets
from paxlike.config import AdaptConfig, ModelConfig


class Decomposition(NamedTuple):
    """The singular value decomposition of a kernel, and the shifts of its singular values."""

    left: WeightSpec
    """U: inputs x R."""
    values: WeightSpec
    right: WeightSpec
    """V^T: R x outputs."""
    shift: WeightSpec


def decomposition(kernel: WeightSpec, model: ModelConfig) -> Decomposition:
    letters, inner = kernel.letters, input_letters(kernel)
    rank = ("R", min(inputs_outputs(kernel, model)))

    def spec(what: str, dims: str) -> WeightSpec:
        stem = kernel.name.removesuffix(f"_{letters}")
        return WeightSpec(f"{stem}_singular_{what}_{dims}", "adapters", more=(rank,))

    return Decomposition(
        spec("left", f"{letters[:inner]}R"),
        spec("values", "R"),
        spec("right", f"R{letters[inner:]}"),
        spec("shift", "R"),
    )


def decompositions(
    model: ModelConfig, adapt: AdaptConfig
) -> dict[str, tuple[tuple[WeightSpec, Decomposition], ...]]:
    """Group of blocks -> (kernel, its decomposition) of each of the targets."""
    return {
        group: tuple((kernel, decomposition(kernel, model)) for kernel in kernels)
        for group, kernels in targets(model, adapt).items()
    }


def added(model: ModelConfig, adapt: AdaptConfig) -> Added:
    """The shifts, and the decompositions that they belong to."""
    found = decompositions(model, adapt)
    return Added(
        layers={group: tuple(d.shift for _, d in pairs) for group, pairs in found.items()},
        derived={
            group: tuple(Derived(spec, kernel) for kernel, d in pairs for spec in d[:3])
            for group, pairs in found.items()
        },
        targets=frozenset(f"{group}/{k.name}" for group, pairs in found.items() for k, _ in pairs),
    )
