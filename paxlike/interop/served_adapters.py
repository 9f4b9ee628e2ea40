"""Adapters that a server has beside their base."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from paxlike.adapt.several import Adapter, check_mixed, with_adapters
from paxlike.config import ModelConfig, UserError
from paxlike.training.base import check_base
from paxlike.training.checkpoint import restore_params
from paxlike.training.loaded_run import LoadedRun
from paxlike.training.run_directory import read_config
from paxlike.training.state import abstract_trained


def add_adapters(
    trained: LoadedRun, name: str, given: Sequence[str]
) -> tuple[LoadedRun, list[str]]:
    """The run with the parameters of its adapters, and their names.

    name: the run's. given: NAME=PATH of adapter runs. Raises UserError for two of one name, a kind
    of adapter that needs the model for itself, or an adapter of another base.
    """
    paths: dict[str, Path] = {}
    for entry in given:
        key, equals, path = entry.partition("=")
        if not (key and equals and path):
            raise UserError(f"--adapter has {entry!r}; write NAME=PATH.")
        if key == name or key in paths:
            raise UserError(f"two models are named {key}; give each adapter a name of its own.")
        paths[key] = Path(path).absolute()
    with jax.set_mesh(trained.mesh):
        adapters = [_read(trained, key, path) for key, path in paths.items()]
        # A row's update is added to the base's product, which is not in ring steps then.
        numerics = dataclasses.replace(trained.numerics, ring=False)
        if any(one.adapt.kind == "prefix" for one in adapters):
            numerics = dataclasses.replace(numerics, attention="blocked")
        params = with_adapters(trained.config.model, numerics, trained.params, adapters)
    return trained._replace(params=params, numerics=numerics), list(paths)


def _read(trained: LoadedRun, name: str, folder: Path) -> Adapter:
    config = read_config(folder)
    if not config.adapt.active:
        raise UserError(f"{folder} has no adapter; serve it by itself.")
    if _shape(config.model) != _shape(trained.config.model):
        raise UserError(
            f"the adapter {name} in {folder} has another model than the served run "
            f"{trained.config.name}; serve the base that it was trained on."
        )
    check_base(folder, trained.params)
    like = abstract_trained(config, trained.numerics)
    adapter, _ = restore_params(folder / "checkpoints", like, None)
    found = Adapter(name, config.adapt, adapter)
    check_mixed(found)
    return found


def _shape(model: ModelConfig) -> ModelConfig:
    """Without what changes no result."""
    return dataclasses.replace(model, attention="auto", remat="none")
