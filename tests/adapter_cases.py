"""Small adapter runs with random parameters beside their bases, for the tests of `interop/`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from helpers import SHAPE, host_params, mesh_of

from paxlike.accounting.adapted_parameters import trained_shapes
from paxlike.config import AdaptConfig, Config, DataConfig, InitConfig, ModelConfig, to_json
from paxlike.data.tokenizer import BytesTokenizer
from paxlike.interop import safetensors
from paxlike.interop.hf import nested
from paxlike.interop.peft_folder import WEIGHTS
from paxlike.training.base import record_base
from paxlike.training.checkpoint import write_checkpoint
from paxlike.training.checkpoint_reader import CheckpointReader


def write_run(config: Config, folder: Path, params: dict) -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config))
    BytesTokenizer().save(folder / "tokenizer")
    write_checkpoint(folder / "checkpoints", {"params": params}, 0, {"step": 0})
    return folder


def config_of(shape: dict) -> Config:
    model = ModelConfig(**{**SHAPE, "vocab_size": 270, **shape})
    return Config(model=model, data=DataConfig(sequence_length=48))


def adapter_run(folder: Path, shape: dict, adapt: AdaptConfig) -> Path:
    """The run `folder`/run with a random adapter, beside its base `folder`/base."""
    config = config_of(shape)
    model = config.model
    base = host_params(config)
    source = write_run(config, folder / "base", base)
    config = dataclasses.replace(config, adapt=adapt, init=InitConfig(str(source)))
    random = np.random.default_rng(3)
    weights = {
        name: random.standard_normal(size).astype(np.float32) / 4
        for name, size in trained_shapes(model, adapt)
    }
    run = write_run(config, folder / "run", nested(weights))
    with jax.set_mesh(mesh_of()):
        record_base(run, config, jax.tree.map(jax.numpy.asarray, base))
    return run


def params_of(run: Path, like: dict) -> dict:
    stored = CheckpointReader(run / "checkpoints", trained_only=True)
    return {name: stored.param(name) for name in like}


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Rewrites the tensors of a PEFT folder after `change`."""
    files = safetensors.Tensors(folder, WEIGHTS)
    tensors = {name: files.read(name) for name in files.shapes}
    change(tensors)
    entries = [safetensors.Entry(n, v.shape, lambda v=v: v) for n, v in tensors.items()]
    safetensors.write_file(folder / WEIGHTS, entries, np.dtype("float32"))
