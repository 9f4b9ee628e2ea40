"""The kinds of adapters (`adapt.kind`): what each adds to a model, and what it freezes.

A kind is a row here with its declaration, and a row in `adapt/forms.py` with its initial values and
what the decoder runs. Imports no JAX.
"""

from collections.abc import Callable

from paxlike.architecture import lora, prefix, reft, singular
from paxlike.architecture.added import Added
from paxlike.architecture.weight_names import all_weights, chosen, trainable
from paxlike.config import AdaptConfig, ConfigError, ModelConfig

ADAPTERS: dict[str, Callable[[ModelConfig, AdaptConfig], Added]] = {
    "none": lambda model, adapt: Added(),
    "lora": lora.added,
    "prefix": prefix.added,
    "singular": singular.added,
    "reft": reft.added,
}


def added_weights(model: ModelConfig, adapt: AdaptConfig) -> Added:
    """The weights of the adapter. Raises ConfigError if it does not fit the model."""
    return ADAPTERS[adapt.kind](model, adapt)


def trained_whole(model: ModelConfig, adapt: AdaptConfig) -> frozenset[str]:
    """Checkpoint names of the base's weights that are trained as they are.

    Raises ConfigError for an unknown name, and for a weight that is also adapted.
    """
    if not adapt.active:
        return frozenset(name for name, _ in all_weights(model))
    found = chosen(adapt.train, trainable(model), "adapt.train")
    both = found & added_weights(model, adapt).targets
    if both:
        first = next(name for name, _ in all_weights(model) if name in both).rpartition("/")[2]
        raise ConfigError(
            f"adapt.train and adapt.targets both have {first}; a weight is "
            "either trained whole or frozen with an update."
        )
    return found
