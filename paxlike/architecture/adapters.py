"""What an adapter adds to the declarations of a model, and what it freezes. Imports no JAX.

LoRA (arXiv 2106.09685) adds to a weight `wq_DNH` the product of two, A and B, declared like any
other by their letters: `wq_lora_a_DR` and `wq_lora_b_RNH`. They are stored beside it.
"""

from collections.abc import Iterator
from typing import NamedTuple

from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.stack import groups, outer_weights
from paxlike.config import AdaptConfig, ConfigError, ModelConfig
from paxlike.config.validation import near
from paxlike.parallel.axes import letters_of


class Factors(NamedTuple):
    """The two weights whose product updates another."""

    a: WeightSpec
    b: WeightSpec


def lora_factors(spec: WeightSpec, rank: int) -> Factors:
    """A and B of a kernel: inputs to R, and R to outputs."""
    letters = spec.letters
    inner = 1 if letters[0] == "D" else len(letters) - 1
    stem = spec.name.removesuffix(f"_{letters}")
    return Factors(
        WeightSpec(f"{stem}_lora_a_{letters[:inner]}R", "adapters", rank=rank),
        WeightSpec(f"{stem}_lora_b_R{letters[inner:]}", "adapters", rank=rank),
    )


def adapted(model: ModelConfig, adapt: AdaptConfig) -> dict[str, dict[str, Factors]]:
    """Group of blocks -> name of an adapted kernel -> the factors of its update.

    Raises ConfigError for an unknown target, and a rank above a dimension of a target.
    """
    if adapt.kind == "none":
        return {}
    chosen = _chosen(adapt.targets, _kernels(model), "adapt.targets")
    found: dict[str, dict[str, Factors]] = {}
    for group, block, _ in groups(model):
        found[group] = {}
        for spec in block.weights(model):
            if f"{group}/{spec.name}" in chosen:
                _check_rank(spec, model, adapt.rank)
                found[group][spec.name] = lora_factors(spec, adapt.rank)
    return found


def trained_whole(model: ModelConfig, adapt: AdaptConfig) -> frozenset[str]:
    """Checkpoint names of the base's weights that are trained as they are.

    Raises ConfigError for an unknown name, and for a weight that is also adapted.
    """
    every = dict(_all_weights(model))
    if not adapt.active:
        return frozenset(every)
    chosen = _chosen(adapt.train, _trainable(model), "adapt.train")
    both = [
        name
        for group, factors in adapted(model, adapt).items()
        for name in factors
        if f"{group}/{name}" in chosen
    ]
    if both:
        raise ConfigError(
            f"adapt.train and adapt.targets both have {both[0]}; a weight is either trained whole "
            "or frozen with an update."
        )
    return chosen


def _check_rank(spec: WeightSpec, model: ModelConfig, rank: int) -> None:
    shape, inner = spec.shape(model), 1 if spec.letters[0] == "D" else len(spec.letters) - 1
    inputs = outputs = 1
    for dim, size in enumerate(shape):
        inputs, outputs = (inputs * size, outputs) if dim < inner else (inputs, outputs * size)
    if rank > min(inputs, outputs):
        raise ConfigError(
            f"adapt.rank is {rank}, above the smaller dimension of {spec.name}, which is "
            f"{inputs} x {outputs}; choose at most {min(inputs, outputs)}, or leave it out of "
            "adapt.targets."
        )


# ---- names ---------------------------------------------------------------------------------------


def _all_weights(model: ModelConfig) -> Iterator[tuple[str, WeightSpec]]:
    """(checkpoint name, spec) of every weight of the base."""
    for spec in outer_weights(model):
        yield spec.name, spec
    for group, block, _ in groups(model):
        for spec in block.weights(model):
            yield f"{group}/{spec.name}", spec


def _kernels(model: ModelConfig) -> dict[str, set[str]]:
    """A target of LoRA -> the checkpoint names that it stands for."""
    found: dict[str, set[str]] = {"all": set()}
    for group, block, _ in groups(model):
        for branch in block.branches:
            for spec in branch.weights(model):
                if spec.kind == "kernel":
                    for word in ("all", branch.name.replace("_", "-"), _stem(spec.name)):
                        found.setdefault(word, set()).add(f"{group}/{spec.name}")
    return found


def _trainable(model: ModelConfig) -> dict[str, set[str]]:
    """A word of `adapt.train` -> the checkpoint names that it stands for."""
    found: dict[str, set[str]] = {"norms": set(), "biases": set(), "embeddings": set()}
    for name, spec in _all_weights(model):
        if spec.kind == "selection":
            continue
        words = {_stem(spec.name)}
        if spec.kind == "scale" or (spec.kind == "bias" and spec.part == "norms"):
            words.add("norms")
        if spec.kind == "bias":
            words.add("biases")
        if spec.part in ("embedding", "head"):
            words.add("embeddings")
        for word in words:
            found.setdefault(word, set()).add(name)
    for group, block, _ in groups(model):
        for branch in block.branches:
            found.setdefault(branch.name.replace("_", "-"), set()).update(
                f"{group}/{spec.name}" for spec in branch.weights(model) if spec.kind != "selection"
            )
    found["layers"] = {
        f"{group}/{spec.name}"
        for group, block, _ in groups(model)
        for spec in block.weights(model)
        if spec.kind != "selection"
    }
    return {word: names for word, names in found.items() if names}


def _stem(name: str) -> str:
    """`wq` for `wq_DNH`."""
    return name.removesuffix(f"_{letters_of(name)}")


def _chosen(words: tuple[str, ...], known: dict[str, set[str]], field: str) -> frozenset[str]:
    found: set[str] = set()
    for word in words:
        stem = word
        if word not in known and "_" in word and word.rpartition("_")[0] in known:
            stem = word.rpartition("_")[0]
        if stem not in known:
            raise ConfigError(
                f"{field} has {word!r}, which this model does not have; choose among "
                f"{', '.join(known)}.{near(word, known)}"
            )
        found |= known[stem]
    return frozenset(found)
