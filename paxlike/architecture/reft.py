"""What ReFT (arXiv 2404.03592) adds to the declarations of a model. Imports no JAX.

After each chosen block there is an intervention on the residual stream. Its two matrices and its
bias are weights of the block: `reft_source_RD` (W of the paper), `reft_rotate_RD` (R, whose rows
are orthonormal; of DiReFT W_2) and `reft_bias_R`. Untied, the first and the last positions of the
prompt have weights of their own: `reft_first_source_RD`, `reft_last_source_RD`, and so on.
"""

from typing import NamedTuple

from paxlike.architecture.added import Added
from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, ConfigError, ModelConfig


class Intervention(NamedTuple):
    """The weights of one intervention."""

    source: WeightSpec
    """From the stream to R dimensions."""
    rotate: WeightSpec
    """Its transpose leads back."""
    bias: WeightSpec


def interventions(adapt: AdaptConfig) -> tuple[Intervention, ...]:
    """Of one layer: one, or those of the first and of the last positions."""
    rank = (("R", adapt.rank),)
    untied = not adapt.tied and all(adapt.prompt_positions)
    return tuple(
        Intervention(
            WeightSpec(f"reft_{which}source_RD", "adapters", more=rank),
            WeightSpec(f"reft_{which}rotate_RD", "adapters", more=rank),
            WeightSpec(f"reft_{which}bias_R", "adapters", "bias", more=rank),
        )
        for which in (("first_", "last_") if untied else ("",))
    )


def added(model: ModelConfig, adapt: AdaptConfig) -> Added:
    """Raises ConfigError for a rank above the width of the stream."""
    if adapt.rank > model.d_model:
        raise ConfigError(
            f"adapt.rank is {adapt.rank}, above model.d_model {model.d_model}, the width of the "
            "stream; choose at most that."
        )
    weights = tuple(spec for intervention in interventions(adapt) for spec in intervention)
    return Added({group: weights for group, _, _ in groups(model)})
