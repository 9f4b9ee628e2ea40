"""The words that a config names weights by: `wq`, `attention`, `norms`, `all`. Imports no JAX."""

from collections.abc import Iterator

from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.stack import groups, outer_weights
from paxlike.config import AdaptConfig, ConfigError, ModelConfig
from paxlike.config.validation import near
from paxlike.parallel.axes import letters_of


def all_weights(model: ModelConfig) -> Iterator[tuple[str, WeightSpec]]:
    """(checkpoint name, spec) of every weight of a model."""
    for spec in outer_weights(model):
        yield spec.name, spec
    for group, block, _ in groups(model):
        for spec in block.weights(model):
            yield f"{group}/{spec.name}", spec


def kernels(model: ModelConfig) -> dict[str, set[str]]:
    """A word of `adapt.targets` -> the checkpoint names that it stands for."""
    found: dict[str, set[str]] = {"all": set()}
    for group, block, _ in groups(model):
        for branch in block.branches:
            for spec in branch.weights(model):
                if spec.kind == "kernel":
                    for word in ("all", branch.name.replace("_", "-"), stem(spec.name)):
                        found.setdefault(word, set()).add(f"{group}/{spec.name}")
    return found


def targets(model: ModelConfig, adapt: AdaptConfig) -> dict[str, tuple[WeightSpec, ...]]:
    """Group of blocks -> its kernels among `adapt.targets`. Raises ConfigError for an unknown
    one."""
    names = chosen(adapt.targets, kernels(model), "adapt.targets")
    return {
        group: tuple(spec for spec in block.weights(model) if f"{group}/{spec.name}" in names)
        for group, block, _ in groups(model)
    }


def trainable(model: ModelConfig) -> dict[str, set[str]]:
    """A word of `adapt.train` -> the checkpoint names that it stands for."""
    found: dict[str, set[str]] = {"norms": set(), "biases": set(), "embeddings": set()}
    for name, spec in all_weights(model):
        if spec.kind == "selection":
            continue
        words = {stem(spec.name)}
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


def stem(name: str) -> str:
    """`wq` for `wq_DNH`."""
    return name.removesuffix(f"_{letters_of(name)}")


def chosen(words: tuple[str, ...], known: dict[str, set[str]], field: str) -> frozenset[str]:
    """The checkpoint names of these words, which may end in letters (`wq_DNH`).

    Raises ConfigError naming `field` and an unknown word.
    """
    found: set[str] = set()
    for word in words:
        short = word if word in known or "_" not in word else word.rpartition("_")[0]
        if short not in known:
            raise ConfigError(
                f"{field} has {word!r}, which this model does not have; choose among "
                f"{', '.join(known)}.{near(word, known)}"
            )
        found |= known[short]
    return frozenset(found)
