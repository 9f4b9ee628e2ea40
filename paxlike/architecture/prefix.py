"""What prefix-tuning (arXiv 2101.00190) adds to the declarations of a model. Imports no JAX.

Every layer has trained keys and values of `adapt.prefix_length` positions, to which all tokens
attend. With `adapt.prefix_hidden` they are the output of a small network, which has one input for
all layers: rows [Q, D], a layer of I hidden units, and a linear map to the keys and values of each
layer (section 4.3). Otherwise they are parameters.
"""

from paxlike.architecture.added import Added
from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, ConfigError, ModelConfig

NETWORK = ("prefix_rows_QD", "prefix_in_DI", "prefix_in_bias_I")
"""The network's weights outside of the layers."""
OUTPUT = ("prefix_k_out_IKH", "prefix_k_bias_KH", "prefix_v_out_IKH", "prefix_v_bias_KH")
"""The network's last map, to the keys and values of one layer."""
DIRECT = ("prefix_k_QKH", "prefix_v_QKH")


def added(model: ModelConfig, adapt: AdaptConfig) -> Added:
    """Raises ConfigError if only some layers are chosen."""
    if adapt.layers:
        raise ConfigError(
            f"adapt.layers is {' '.join(map(str, adapt.layers))}, but a prefix is in all layers; "
            "leave it empty."
        )
    more = (("Q", adapt.prefix_length), ("I", adapt.prefix_hidden))

    def specs(names: tuple[str, ...]) -> tuple[WeightSpec, ...]:
        return tuple(WeightSpec(name, "adapters", more=more) for name in names)

    names = OUTPUT if adapt.prefix_hidden else DIRECT
    layers = {group.name: specs(names) for group in groups(model)}
    return Added(layers, specs(NETWORK) if adapt.prefix_hidden else ())
