"""Adapter runs made of a base and of an adapter in another library's format."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from paxlike.accounting.adapted_parameters import trained_shapes
from paxlike.config import (
    AdaptConfig,
    Config,
    DataConfig,
    InitConfig,
    ModelConfig,
    PrecisionConfig,
    UserError,
    to_json,
)
from paxlike.data.tokenizer import Tokenizer, load_tokenizer
from paxlike.interop.hf import nested
from paxlike.interop.hf_source import HfSource
from paxlike.interop.init_sources import open_source
from paxlike.training.base import read_base, record_base
from paxlike.training.checkpoint import write_checkpoint
from paxlike.training.init_source import Source
from paxlike.training.loaded_run import numerics_of
from paxlike.training.run_directory import read_config


class Base(NamedTuple):
    path: Path
    config: Config
    """Of a run that adapts it."""
    source: Source
    tokenizer: Tokenizer


def open_base(path: Path) -> Base:
    """A base, a Hugging Face folder or a run. Raises UserError if it has no tokenizer."""
    config = _config(path)
    source = open_source(str(path), config)
    if source.tokenizer is None:
        raise UserError(f"the base {path} has no tokenizer.")
    return Base(path, config, source, source.tokenizer)


def write_adapter_run(
    folder: Path, base: Base, adapt: AdaptConfig, params: dict[str, np.ndarray]
) -> tuple[Config, dict]:
    """Writes an adapter run into an empty folder; its config and the base's parameters.

    params: by checkpoint name. Call it with an active mesh.
    """
    config = adapter_config(base.config, adapt, base.path)
    expected = dict(trained_shapes(config.model, adapt))
    assert {name: value.shape for name, value in params.items()} == expected
    (folder / "config.json").write_text(to_json(config))
    (folder / "tokenizer").mkdir()
    base.tokenizer.save(folder / "tokenizer")
    write_checkpoint(folder / "checkpoints", {"params": nested(params)}, 0, {"step": 0})
    weights = read_base(config, numerics_of(config), base.source)
    record_base(folder, config, weights)
    return config, weights


def adapter_config(config: Config, adapt: AdaptConfig, base: Path) -> Config:
    """The config of an adapter run. The base's may leave no positions for a prefix, or name an
    attention kernel that has none."""
    model, data = config.model, config.data
    if adapt.kind == "prefix":
        model = dataclasses.replace(model, attention="auto")
        if model.learned_positions:
            left = model.learned_positions - adapt.prefix_length
            data = dataclasses.replace(data, sequence_length=min(data.sequence_length, left))
    init = InitConfig(str(base.absolute()))
    return dataclasses.replace(config, model=model, data=data, adapt=adapt, init=init)


def _config(base: Path) -> Config:
    if (base / "checkpoints").is_dir():
        config = read_config(base)
        load_tokenizer(base / "tokenizer")
        return config
    source = HfSource(base)
    model = dataclasses.replace(source.model, vocab_multiple=ModelConfig.vocab_multiple)
    data = DataConfig(sequence_length=source.length or DataConfig.sequence_length)
    precision = PrecisionConfig(params="bfloat16" if source.dtype == "bfloat16" else "float32")
    return Config(name="adapter", model=model, data=data, precision=precision)
