"""Converts runs to Hugging Face folders and back. Logits are compared before a result is kept.

`to_hf` holds one or two layers in memory at a time. `from_hf` holds all parameters once, because a
checkpoint is written from whole arrays. Neither requires torch or transformers.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from paxlike.accounting.parameters import parameter_count, stored_shapes
from paxlike.config import Config, DataConfig, ModelConfig, PrecisionConfig, UserError, to_json
from paxlike.data.tokenizer import load_tokenizer
from paxlike.files import new_folder
from paxlike.interop import hf_layout, hf_tokenizer, safetensors
from paxlike.interop.conversion_result import Converted
from paxlike.interop.hf_forward import logits as hf_logits
from paxlike.interop.hf_source import HfSource
from paxlike.interop.reference_logits import logits as paxlike_logits
from paxlike.training.checkpoint import write_checkpoint
from paxlike.training.checkpoint_reader import CheckpointReader
from paxlike.training.run_directory import read_config

TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
"""Largest allowed difference of logits, relative to their standard deviation, by parameter dtype.

A few layers in float32 give about 1e-6, a norm's scale rounded to bfloat16 up to 1e-2, and a wrong
layout about 1.
"""
PROBE_TOKENS = 24


def to_hf(run: Path, out: Path, step: int | None = None, shard_bytes: int = 5 * 10**9) -> Converted:
    """Writes a run's checkpoint as a folder for AutoModelForCausalLM and AutoTokenizer.

    Raises UserError, and leaves nothing behind, if the run cannot be read, `out` exists, the
    architecture or tokenizer has no equivalent, or the logits differ.
    """
    config = read_config(run)
    model, dtype = config.model, config.precision.params
    tokenizer = load_tokenizer(run / "tokenizer")
    hf_config = hf_layout.to_config(model, config.data.sequence_length, dtype, tokenizer.eod)
    stored = CheckpointReader(run / "checkpoints", step)
    table = hf_layout.tensors(model, hf_layout.family(model))
    # All experts of a layer are one parameter, and a tensor each.
    param = functools.lru_cache(maxsize=1)(stored.param)
    with new_folder(out) as folder:
        notes = hf_tokenizer.write(folder, tokenizer, config.data.sequence_length)
        notes += hf_tokenizer.copy_template(run / "tokenizer", folder, tokenizer)
        (folder / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n")

        def read(name: str) -> np.ndarray:
            shared = tensors[name]
            return hf_layout.joined(shared, [param(t.param, t.layer) for t in shared])

        tensors = hf_layout.by_name(table)
        entries = [
            safetensors.Entry(name, shared[0].shape, functools.partial(read, name))
            for name, shared in tensors.items()
        ]
        safetensors.write(folder, entries, safetensors.numpy_dtype(dtype), shard_bytes)
        difference = check(
            hf_config, safetensors.Tensors(folder).read, model, stored.param, TOLERANCE[dtype]
        )
    return Converted(out, parameter_count(model), _summary(difference), notes)


def _precision(params: str) -> PrecisionConfig:
    return PrecisionConfig(params="bfloat16" if params == "bfloat16" else "float32")


def from_hf(source: Path, out: Path) -> Converted:
    """Converts a Hugging Face folder to a run directory without optimizer state.

    Raises UserError, and leaves nothing behind, in the cases of `to_hf`, and if a tensor is
    missing, unexpected, or has the wrong shape.
    """
    loaded = HfSource(source)
    hf_config, dtype, files = loaded.config, loaded.dtype, loaded.files
    tokenizer = loaded.tokenizer or loaded.read_tokenizer()
    model = dataclasses.replace(loaded.model, vocab_multiple=ModelConfig.vocab_multiple)
    params = _load_params(loaded, model, safetensors.numpy_dtype(dtype))
    with new_folder(out) as folder:
        name = (
            "".join(c if c.isalnum() or c in "._-" else "-" for c in out.name).lstrip(".") or "run"
        )
        data = DataConfig(sequence_length=loaded.length or DataConfig.sequence_length)
        config = Config(name=name, model=model, data=data, precision=_precision(dtype))
        (folder / "config.json").write_text(to_json(config))
        (folder / "tokenizer").mkdir()
        tokenizer.save(folder / "tokenizer")
        hf_tokenizer.copy_template(source, folder / "tokenizer", tokenizer)
        write_checkpoint(folder / "checkpoints", {"params": nested(params)}, 0, {"step": 0})
        stored = CheckpointReader(folder / "checkpoints")
        difference = check(hf_config, files.read, model, stored.param, TOLERANCE[dtype])
    return Converted(out, parameter_count(model), _summary(difference), [])


def _summary(difference: float) -> str:
    return f"logits differ by at most {difference:.1e} of their standard deviation"


def check(
    hf_config: dict,
    hf_tensor: Callable[[str], np.ndarray],
    model: ModelConfig,
    param: Callable[[str, int | None], np.ndarray],
    tolerance: float,
) -> float:
    """Compares the logits of both models on a few random tokens.

    Returns the largest difference, relative to the standard deviation. Raises UserError if it
    exceeds `tolerance`.
    """
    tokens_T = np.random.default_rng(0).integers(0, model.vocab_size, PROBE_TOKENS).astype(np.int32)
    tokens_T[-1] = model.vocab_size - 1
    expected = paxlike_logits(model, param, tokens_T)
    difference = float(
        np.abs(hf_logits(hf_config, hf_tensor, tokens_T) - expected).max() / expected.std()
    )
    if not difference <= tolerance:
        raise UserError(
            f"the converted model's logits differ from the original's by {difference:.3g} of "
            f"their standard deviation (tolerance {tolerance}); nothing was written. Check that "
            "all parameters are finite."
        )
    return difference


def _load_params(source: HfSource, model: ModelConfig, dtype: np.dtype) -> dict[str, np.ndarray]:
    """The parameters, with zeros where rows pad the vocabulary."""
    params = {name: np.zeros(shape, dtype) for name, shape in stored_shapes(model)}
    for name, layer in source.params:
        found = source.param(name, layer)
        target = params[name][... if layer is None else layer]
        target[tuple(slice(size) for size in found.shape)] = found
    return params


def nested(params: dict[str, np.ndarray]) -> dict:
    """Converts checkpoint names (`blocks/wq_DNH`) to the nested dict of a checkpoint."""
    nested: dict = {}
    for name, array in params.items():
        folder, _, leaf = name.rpartition("/")
        (nested.setdefault(folder, {}) if folder else nested)[leaf] = array
    return nested
