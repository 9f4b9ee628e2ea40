"""A base and what was trained on it as one model: the update in the weights, or beside them."""

from paxlike.adapt.forms import FORMS
from paxlike.adapt.spread import spread
from paxlike.architecture.adapters import trained_whole
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, Config, ModelConfig, UserError
from paxlike.nn.numerics import Numerics


def merged(
    model: ModelConfig, adapt: AdaptConfig, base: dict, trained: dict, derived: dict | None = None
) -> dict:
    """Parameters of the base's layout that contain the adapter: the base and its update in float32,
    rounded once to the base's dtype.

    base: all parameters. trained: as in a checkpoint. derived: see `adapt.derived`. Raises
    UserError for an adapter that cannot be part of the weights.
    """
    if reason := FORMS[adapt.kind].beside(model):
        raise UserError(
            f"{reason}. Use the run as it is; generate, serve and evaluate read the adapter beside "
            "its base."
        )
    return _assembled(model, adapt, None, base, trained, derived or {})


def assembled(
    config: Config, numerics: Numerics, base: dict, trained: dict, derived: dict | None = None
) -> dict:
    """What a decoder runs for inference: the adapter merged, or beside what it cannot be merged
    into: `Adapted` weights of a quantized model, a prefix."""
    return _assembled(config.model, config.adapt, numerics, base, trained, derived or {})


def _assembled(model, adapt, numerics: Numerics | None, base, trained, derived) -> dict:
    whole, merge = trained_whole(model, adapt), FORMS[adapt.kind].merge
    params = {**base, **{name: value for name, value in trained.items() if name in whole}}
    for group, _, _ in groups(model):
        stacks = dict(base[group])
        for name in stacks:
            if f"{group}/{name}" in whole and adapt.active:
                stacks[name] = spread(model, adapt, trained[group][name], stacks[name])
        params[group] = merge(model, adapt, numerics, group, stacks, trained, derived)
    return params
