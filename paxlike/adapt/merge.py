"""A base and what was trained on it as one model: the update in the weights, or beside them."""

from paxlike.adapt.forms import FORMS
from paxlike.adapt.spread import spread
from paxlike.architecture.adapters import trained_whole
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig, ModelConfig, UserError


def merged(
    model: ModelConfig, adapt: AdaptConfig, base: dict, trained: dict, derived: dict
) -> dict:
    """Parameters of the base's layout that contain the adapter: the base and its update in float32,
    rounded once to the base's dtype.

    base: all parameters. trained: as in a checkpoint. derived: see `adapt.derived`. Raises
    UserError for an adapter that cannot be part of the weights.
    """
    if reason := FORMS[adapt.kind].beside(model):
        raise UserError(
            f"the adapter cannot be merged: {reason}. Use the run as it is; the adapter stays "
            "beside its base."
        )
    return assembled(model, adapt, base, trained, derived)


def assembled(
    model: ModelConfig, adapt: AdaptConfig, base: dict, trained: dict, derived: dict
) -> dict:
    """What a decoder runs for inference: merged, or with the adapter beside the weights."""
    whole = trained_whole(model, adapt)
    params = {**base, **{name: value for name, value in trained.items() if name in whole}}
    for group, _, _ in groups(model):
        stacks = dict(base[group])
        for name in stacks:
            if f"{group}/{name}" in whole and adapt.active:
                stacks[name] = spread(model, adapt, trained[group][name], stacks[name])
        params[group] = FORMS[adapt.kind].merge(model, adapt, group, stacks, trained, derived)
    return params
