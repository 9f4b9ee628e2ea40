"""The kinds of adapters: their initial values, and the form in which the decoder runs them.

`architecture/adapters.py` has the declaration of each.
"""

from paxlike.adapt import lora, prefix
from paxlike.adapt.form import Draw, Form

FORMS: dict[str, Form] = {
    "none": Form(
        initial=lambda model, adapt, seed: {},
        wrap=lambda model, adapt, group, stacks, outer, seed, draw: stacks,
    ),
    "lora": Form(lora.initial, lora.wrap),
    "prefix": Form(prefix.initial, prefix.wrap),
}

__all__ = ["FORMS", "Draw", "Form"]
