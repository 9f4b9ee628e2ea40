"""What an adapter derives from its base (`adapt/derived.py`), kept beside a run: `derived/`.

It is computed once, since another machine may compute other signs and other bases of subspaces, and
what is trained belongs to these.
"""

from collections.abc import Callable
from pathlib import Path

import jax

from paxlike.adapt.derived import empty
from paxlike.adapt.forms import FORMS
from paxlike.config import Config
from paxlike.training.checkpoint import read_arrays, write_arrays
from paxlike.training.state import placed

FOLDER = "derived"


def make_derived(folder: Path, config: Config, base: dict, say: Callable[[str], None]) -> dict:
    """Of a run without a checkpoint: computed and written, or read if it is there already.

    Runs in every process. Raises UserError if what is there is not of this base.
    """
    model, adapt = config.model, config.adapt
    if not abstract_derived(config) or (folder / FOLDER).exists():
        return read_derived(folder, config, base)
    found = FORMS[adapt.kind].derive(model, adapt, base, say)
    FORMS[adapt.kind].check(model, adapt, base, found)
    write_arrays(folder / FOLDER, found)
    return found


def read_derived(folder: Path, config: Config, base: dict) -> dict:
    """Of a run, on the active mesh; {} for most kinds of adapters. Raises UserError if it cannot
    be read or is not of this base."""
    if not (like := abstract_derived(config)):
        return {}
    found = read_arrays(folder / FOLDER, like)
    FORMS[config.adapt.kind].check(config.model, config.adapt, base, found)
    return found


def abstract_derived(config: Config) -> dict:
    """Shapes and shardings on the active mesh."""
    return placed(jax.eval_shape(lambda: empty(config.model, config.adapt)))
