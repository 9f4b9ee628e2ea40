"""The base of an adapter run: recorded by path and fingerprint, and read again on every start.

Checkpoints of an adapter run hold what is trained. `base.json` in the run directory says what they
belong to.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax

from paxlike.adapt.fingerprint import fingerprint
from paxlike.adapt.parts import split
from paxlike.config import Config, UserError
from paxlike.nn.numerics import Numerics
from paxlike.training.derived import read_derived
from paxlike.training.init_params import first_params
from paxlike.training.init_plan import make_plan
from paxlike.training.init_source import RunSource, Source
from paxlike.training.run_directory import write_text
from paxlike.training.state import abstract_params, initial_params

RECORD = "base.json"

OpenSource = Callable[[str, Config], Source]
"""(path, config) -> the trained model there."""


def read_base(config: Config, numerics: Numerics, source: Source | None) -> dict:
    """All parameters of the base on the active mesh. Without a source they are the random ones of
    `train.seed`.
    """
    if source is None:
        return initial_params(config, numerics)
    names = [name for name, _ in _names(config, numerics)]
    plan = make_plan(config.model, names, config.init, source)
    return first_params(config, numerics, abstract_params(config, numerics), plan.origins)


def _names(config: Config, numerics: Numerics) -> list[tuple[str, object]]:
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(config, numerics))
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in leaves]


def record_base(folder: Path, config: Config, base: dict) -> None:
    """Writes base.json of a new adapter run. Runs in every process; the first one writes."""
    found = {"path": config.init.source, "fingerprint": fingerprint(base)}
    if jax.process_index() == 0:
        write_text(folder / RECORD, json.dumps(found, indent=2) + "\n")


def check_base(folder: Path, base: dict) -> None:
    """Raises UserError if the parameters are not those that the run in `folder` adapts."""
    try:
        known = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RECORD} cannot be read: {error}. Restore it.") from error
    if (found := fingerprint(base)) != known["fingerprint"]:
        path = known["path"] or "the initial parameters of train.seed"
        raise UserError(
            f"the adapter in {folder} was trained on another base: {path} had the fingerprint "
            f"{known['fingerprint'][:12]} then, and has {found[:12]} now. Restore the base."
        )


def frozen_of(config: Config, folder: Path, base: dict) -> dict:
    """The frozen part of a checked base, with what the adapter derived from it."""
    check_base(folder, base)
    return split(config.model, config.adapt, base, read_derived(folder, config, base)).frozen


def open_run_base(path: str, config: Config) -> Source:
    """Opens a base that is a run directory; `interop.init_sources.open_source` opens all kinds."""
    folder = Path(path)
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"the base {path} is not a run directory here.")
    return RunSource(folder)
