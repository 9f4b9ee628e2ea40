"""The kinds of adapters: their initial values, and the form in which the decoder runs them.

`architecture/adapters.py` has the declaration of each.
"""

from paxlike.adapt import lora, prefix, reft, singular
from paxlike.adapt.form import Form

FORMS: dict[str, Form] = {
    "none": Form(
        initial=lambda model, adapt, seed: {},
        wrap=lambda model, adapt, group, stacks, outer, draw: stacks,
        merge=lambda model, adapt, numerics, group, stacks, trained, derived: stacks,
        beside=lambda model: "",
    ),
    "lora": Form(lora.initial, lora.wrap, lora.merge, lora.beside),
    "singular": Form(
        singular.initial,
        singular.wrap,
        singular.merge,
        beside=lambda model: "",
        derive=singular.derive,
        check=singular.check,
    ),
    "reft": Form(reft.initial, reft.wrap, reft.merge, reft.beside, constrain=reft.constrain),
    "prefix": Form(prefix.initial, prefix.wrap, prefix.merge, prefix.beside),
}
