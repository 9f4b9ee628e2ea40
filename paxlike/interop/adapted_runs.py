"""A complete run made of an adapter run: its base with the adapter in the weights."""

import dataclasses
import shutil
from pathlib import Path

import jax

from paxlike.accounting.parameters import parameter_count
from paxlike.adapt.merge import merged
from paxlike.config import AdaptConfig, InitConfig, UserError, to_json
from paxlike.files import new_folder
from paxlike.interop.conversion_result import Converted
from paxlike.interop.init_sources import open_source
from paxlike.training.checkpoint import restore_params, write_checkpoint
from paxlike.training.derived import read_derived
from paxlike.training.loaded_run import base_of, numerics_of, on_one_device
from paxlike.training.run_directory import read_config
from paxlike.training.state import abstract_trained


def merge(run: Path, out: Path, step: int | None = None) -> Converted:
    """Writes a run directory without adapter, whose weights contain it, rounded once. It has no
    optimizer state.

    Raises UserError if the run has no adapter, its base has changed, or it cannot be part of the
    weights.
    """
    config = read_config(run)
    if not config.adapt.active:
        raise UserError(f"{run} has no adapter: its checkpoints are complete.")
    with on_one_device():
        like = abstract_trained(config, numerics_of(config))
        trained, step = restore_params(run / "checkpoints", like, step)
        base = base_of(run, config, open_source)
        derived = read_derived(run, config, base)
        params = jax.device_get(merged(config.model, config.adapt, base, trained, derived))
    plain = dataclasses.replace(config, adapt=AdaptConfig(), init=InitConfig())
    with new_folder(out) as folder:
        (folder / "config.json").write_text(to_json(plain))
        shutil.copytree(run / "tokenizer", folder / "tokenizer")
        write_checkpoint(folder / "checkpoints", {"params": params}, step, {"step": step})
    return Converted(out, parameter_count(config.model), f"merged from step {step}", [])
