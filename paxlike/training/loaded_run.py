"""Loads a run: config, parameters and tokenizer, on the available devices."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from paxlike.accounting.parameters import stored_shapes
from paxlike.adapt.merge import assembled
from paxlike.config import (
    Config,
    ConfigError,
    DataConfig,
    MeshConfig,
    ModelConfig,
    check_expert_axis,
    divisors,
)
from paxlike.data.source import (
    AnySource,
    check_unchanged,
    open_data,
    validation_batches,
    weights_at,
)
from paxlike.data.store import open_store
from paxlike.data.tokenizer import Tokenizer, load_tokenizer
from paxlike.nn.numerics import Numerics
from paxlike.parallel.host_batches import local_rows
from paxlike.parallel.mesh import make_mesh
from paxlike.parallel.sharding_table import sharding_rows
from paxlike.quant.tiles import check_mesh
from paxlike.training.base import OpenSource, check_base, open_run_base, read_base
from paxlike.training.checkpoint import restore_params
from paxlike.training.derived import read_derived
from paxlike.training.evaluate import evaluate_parts
from paxlike.training.run_directory import read_config, read_data
from paxlike.training.state import abstract_trained
from paxlike.training.step import DeviceBatch, make_eval_step, on_mesh


class LoadedRun(NamedTuple):
    config: Config
    numerics: Numerics
    params: dict
    step: int
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    """The mesh of the parameters; activate it (`jax.set_mesh`) to use them."""


def load_run(
    folder: Path,
    mesh: MeshConfig | None = None,
    step: int | None = None,
    open_base: OpenSource = open_run_base,
) -> LoadedRun:
    """Loads the run's newest checkpoint, or the one at `step`.

    mesh: None uses `widest_mesh`. open_base: opens the base of an adapter run, which is returned
    with the adapter merged, or beside quantized weights. Raises UserError if the run cannot be
    read, or if its experts do not fit the mesh.
    """
    config = read_config(folder)
    numerics = numerics_of(config)
    if mesh:
        check_expert_axis(config.model, mesh)
        numerics = dataclasses.replace(numerics, transport=mesh.expert_transport)
    device_mesh = make_mesh(mesh or widest_mesh(config.model, len(jax.devices())))
    with jax.set_mesh(device_mesh):
        trained, step = restore_params(
            folder / "checkpoints", abstract_trained(config, numerics), step
        )
        params = trained
        if config.adapt.active:
            base = base_of(folder, config, open_base)
            derived = read_derived(folder, config, base)
            params = assembled(config, numerics, base, trained, derived)
    return LoadedRun(
        config, numerics, params, step, load_tokenizer(folder / "tokenizer"), device_mesh
    )


def numerics_of(config: Config) -> Numerics:
    """Of a run on this platform."""
    return Numerics.of_run(config, jax.default_backend())


def on_one_device():
    """A mesh of one device, to use with `with`."""
    return jax.set_mesh(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))


def base_of(folder: Path, config: Config, open_base: OpenSource = open_run_base) -> dict:
    """The base of an adapter run on the active mesh. Raises UserError if it is another one now."""
    source = open_base(config.init.source, config) if config.init.source else None
    base = read_base(config, numerics_of(config), source)
    check_base(folder, base)
    return base


def widest_mesh(model: ModelConfig, devices: int) -> MeshConfig:
    """Returns the mesh with the largest `model` axis that the weights fit.

    Generation gathers no weight over `model`, so the largest axis is the fastest. Raises
    ConfigError if no mesh fits.
    """
    for size in reversed(divisors(devices)):
        sizes = {"pod": 1, "data": devices // size, "model": size}
        try:
            sharding_rows(stored_shapes(model), sizes)
            check_mesh(model.quant, sizes)
        except ConfigError:
            continue
        return MeshConfig(data=devices // size, model=size)
    raise ConfigError(
        f"the model's weights fit no mesh of {devices} devices; use fewer devices (model.d_model "
        f"is {model.d_model})."
    )


def evaluate_run(run: LoadedRun, folder: Path, batches: int, store: str = "") -> dict[str, float]:
    """The losses (`evaluate`) on the first `batches` batches of the validation split of the run in
    `folder` (0: the whole split).

    store: where the run's token store is, if it was moved. Raises UserError if its content is not
    the one that the run was trained on.
    """
    train = run.config.train
    with jax.set_mesh(run.mesh):
        data = run.config.data
        dataset = open_recorded(folder, data, store)
        sources = validation_batches(dataset, data, train)
        rows = local_rows(train.batch_size, train.accumulate)
        eval_step = make_eval_step(run.config, run.numerics)

        def on_devices(source) -> Iterator[DeviceBatch]:
            for batch in source.batches(batches or sys.maxsize, lambda _: rows):
                yield on_mesh(batch, rows, train.batch_size, train.accumulate)

        parts = {name: on_devices(one) for name, one in sources.items()}
        return evaluate_parts(eval_step, run.params, parts, weights_at(dataset, run.step))


def open_recorded(folder: Path, data: DataConfig, store: str = "") -> AnySource:
    """The data that the run in `folder` was trained on. store: where its store was moved to.

    Raises UserError if it cannot be opened or its content has changed.
    """
    recorded = read_data(folder)
    several = (data.seqio_mixture or data.mixture) and not store
    dataset = open_data(data) if several else open_store(store or recorded["store"])
    check_unchanged(dataset, recorded["fingerprint"])
    return dataset
