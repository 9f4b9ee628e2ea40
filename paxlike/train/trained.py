"""A trained run, opened to be used: its config, parameters and tokenizer, on the devices that are here."""

import sys
from pathlib import Path
from typing import NamedTuple

import jax

from paxlike.accounting.parameters import stored_shapes
from paxlike.config import Config, ConfigError, MeshConfig, ModelConfig, divisors
from paxlike.data.source import open_data, validation_batches
from paxlike.data.store import open_store
from paxlike.data.tokenizer import Tokenizer, load_tokenizer
from paxlike.nn.weight import Numerics
from paxlike.parallel.ingest import local_rows
from paxlike.parallel.mesh import make_mesh
from paxlike.parallel.table import sharding_rows
from paxlike.quant.tiles import check_mesh
from paxlike.train.checkpoint import restore_params
from paxlike.train.evaluate import evaluate
from paxlike.train.loop import on_mesh
from paxlike.train.run import read_config, read_data
from paxlike.train.state import abstract_params
from paxlike.train.step import make_eval_step


class Trained(NamedTuple):
    config: Config
    numerics: Numerics
    params: dict
    step: int
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh
    """Where the parameters lie; put it in force (`jax.set_mesh`) to use them."""


def open_trained(folder: Path, mesh: MeshConfig | None = None, step: int | None = None) -> Trained:
    """The run's newest checkpoint, or the one of `step`, on its own mesh (None: `widest_mesh`). Raises UserError."""
    config = read_config(folder)
    numerics = Numerics.of(config.model, config.precision, jax.default_backend())
    made = make_mesh(mesh or widest_mesh(config.model, len(jax.devices())))
    with jax.set_mesh(made):
        params, step = restore_params(folder / "checkpoints", abstract_params(config, numerics), step)
    return Trained(config, numerics, params, step, load_tokenizer(folder / "tokenizer"), made)


def widest_mesh(model: ModelConfig, devices: int) -> MeshConfig:
    """The mesh with the largest `model` axis that the model's weights fit: no weight is gathered over it to make a token."""
    for size in reversed(divisors(devices)):
        sizes = {"pod": 1, "data": devices // size, "model": size}
        try:
            sharding_rows(stored_shapes(model), sizes)
            check_mesh(model.quant, sizes)
        except ConfigError:
            continue
        return MeshConfig(data=devices // size, model=size)
    raise ConfigError(
        f"the model's weights fit no mesh of {devices} devices; use fewer (model.d_model is {model.d_model})."
    )


def evaluate_run(folder: Path, mesh: MeshConfig, step: int | None, batches: int) -> tuple[int, dict[str, float]]:
    """(step, losses) of a run on the first `batches` batches of its validation split; 0 takes the whole split."""
    trained = open_trained(folder, mesh, step)
    train = trained.config.train
    with jax.set_mesh(trained.mesh):
        data = trained.config.data
        opened = open_data(data) if data.seqio_mixture else open_store(read_data(folder)["store"])
        source = validation_batches(opened, data, train)
        rows = local_rows(train.batch_size, train.accumulate)
        eval_step = make_eval_step(trained.config, trained.numerics)
        read = source.batches(batches or sys.maxsize, lambda _: rows)
        on_devices = (on_mesh(batch, rows, train.batch_size, train.accumulate) for batch in read)
        return trained.step, evaluate(eval_step, trained.params, on_devices)
