"""What LoRA (arXiv 2106.09685) adds to the declarations of a model. Imports no JAX.

It adds to a weight `wq_DNH` the product of two, A and B, declared like any other by their letters:
`wq_lora_a_DR` and `wq_lora_b_RNH`. They are stored beside it.
"""

import math
from typing import NamedTuple

from paxlike.architecture.added import Added
from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.weight_names import targets
from paxlike.config import AdaptConfig, ConfigError, ModelConfig


class Factors(NamedTuple):
    """The two weights whose product updates another."""

    a: WeightSpec
    b: WeightSpec


def lora_factors(spec: WeightSpec, rank: int) -> Factors:
    """A and B of a kernel: inputs to R, and R to outputs."""
    letters, inner = spec.letters, input_letters(spec)
    stem = spec.name.removesuffix(f"_{letters}")
    return Factors(
        WeightSpec(f"{stem}_lora_a_{letters[:inner]}R", "adapters", more=(("R", rank),)),
        WeightSpec(f"{stem}_lora_b_R{letters[inner:]}", "adapters", more=(("R", rank),)),
    )


def lora_updates(model: ModelConfig, adapt: AdaptConfig) -> dict[str, dict[str, Factors]]:
    """Group of blocks -> name of an adapted kernel -> the factors of its update.

    Empty for other kinds of adapters. Raises ConfigError for an unknown target, and a rank above a
    dimension of a target.
    """
    if adapt.kind != "lora":
        return {}
    found: dict[str, dict[str, Factors]] = {}
    for group, specs in targets(model, adapt).items():
        found[group] = {}
        for spec in specs:
            _check_rank(spec, model, adapt.rank)
            found[group][spec.name] = lora_factors(spec, adapt.rank)
    return found


def added(model: ModelConfig, adapt: AdaptConfig) -> Added:
    """The factors of all updates."""
    updates = lora_updates(model, adapt)
    layers = {
        group: tuple(spec for pair in pairs.values() for spec in pair)
        for group, pairs in updates.items()
    }
    return Added(layers, targets=frozenset(f"{g}/{name}" for g, p in updates.items() for name in p))


def input_letters(spec: WeightSpec) -> int:
    """How many of a kernel's dimensions, the first ones, are its inputs."""
    return 1 if spec.letters[0] == "D" else len(spec.letters) - 1


def _check_rank(spec: WeightSpec, model: ModelConfig, rank: int) -> None:
    inputs, outputs = inputs_outputs(spec, model)
    if rank > min(inputs, outputs):
        raise ConfigError(
            f"adapt.rank is {rank}, above the smaller dimension of {spec.name}, which is "
            f"{inputs} x {outputs}; choose at most {min(inputs, outputs)}, or leave it out of "
            "adapt.targets."
        )


def inputs_outputs(spec: WeightSpec, model: ModelConfig) -> tuple[int, int]:
    """The dimensions of a kernel as a matrix."""
    shape, inner = spec.shape(model), input_letters(spec)
    return math.prod(shape[:inner]), math.prod(shape[inner:])
