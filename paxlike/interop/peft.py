"""Adapters as folders of PEFT (adapter_config.json, adapter_model.safetensors) and back.

Logits are compared before a result is kept, and must differ from the base's: a folder whose tensors
are silently ignored is the usual failure of such conversions. Requires neither torch nor PEFT.
"""

import json
from pathlib import Path

import jax
import numpy as np

from paxlike.accounting.adapted_parameters import trained_count, trained_shapes
from paxlike.adapt.merge import merged
from paxlike.config import (
    AdaptConfig,
    Config,
    ModelConfig,
    UserError,
)
from paxlike.files import new_folder
from paxlike.interop import hf_layout, peft_config, safetensors
from paxlike.interop.conversion_result import Converted
from paxlike.interop.hf import PROBE_TOKENS, TOLERANCE, nested
from paxlike.interop.hf_forward import logits as hf_logits
from paxlike.interop.init_sources import open_source
from paxlike.interop.new_adapter_runs import open_base, write_adapter_run
from paxlike.interop.peft_layout import (
    PREFIX,
    Array,
    Module,
    Pair,
    Read,
    from_peft,
    modules,
    names,
    place,
    to_peft,
    with_update,
)
from paxlike.interop.reference_logits import logits as paxlike_logits
from paxlike.parallel.axes import is_stacked
from paxlike.training.checkpoint_reader import CheckpointReader
from paxlike.training.loaded_run import base_of, on_one_device
from paxlike.training.run_directory import read_config

WEIGHTS = "adapter_model.safetensors"


def export(run: Path, out: Path, step: int | None = None) -> Converted:
    """Writes the adapter of a run as a PEFT folder.

    Raises UserError, and leaves nothing behind, if the run has no LoRA adapter or also trains
    weights of the base, its architecture has no equivalent, or the logits differ.
    """
    config = read_config(run)
    model, adapt = config.model, config.adapt
    if adapt.kind != "lora" or adapt.train:
        also = f" and also trains {', '.join(adapt.train)}" if adapt.train else ""
        raise UserError(
            f"{run} has adapt.kind {adapt.kind}{also}; PEFT's LoRA folder has the factors of an "
            "adapter only. Merge the run instead (paxlike adapt merge)."
        )
    found = {m.path: (m, pair) for m, pair in _factors(config, run, step)}
    written = peft_config.written(config, {path: len(p.a) for path, (_, p) in found.items()})
    with new_folder(out) as folder, on_one_device():
        (folder / "adapter_config.json").write_text(json.dumps(written, indent=2) + "\n")
        entries = [
            safetensors.Entry(f"{PREFIX}{path}.lora_{side}.weight", value.shape, value.copy)
            for path, (_, pair) in found.items()
            for side, value in zip("AB", pair, strict=True)
        ]
        safetensors.write_file(folder / WEIGHTS, entries, np.dtype("float32"))
        base = base_of(run, config, open_source)
        trained = _trained(config, run, step)
        whole = jax.device_get(merged(model, adapt, base, trained))
        read = _hf_reader(model, jax.device_get(base))
        updates = dict(m.update(pair, scale) for m, pair, scale in _read_folder(folder, model))
        difference = _check(config, whole, read, updates)
    return Converted(out, trained_count(model, adapt), difference, [])


def load(source: Path, base: Path, out: Path) -> Converted:
    """Makes an adapter run of a PEFT folder and its base, a Hugging Face folder or a run.

    Raises UserError, and leaves nothing behind, for settings of PEFT without an equivalent, a
    tensor that is missing, unexpected or of another shape, and logits that differ.
    """
    opened = open_base(base)
    model = opened.config.model
    found = _read_folder(source, model)
    adapt, params = _as_run(model, found)
    with new_folder(out) as folder, on_one_device():
        config, weights = write_adapter_run(folder, opened, adapt, params)
        trained = _trained(config, folder, None)
        whole = jax.device_get(merged(model, adapt, weights, trained))
        read = _hf_reader(model, jax.device_get(weights))
        updates = dict(m.update(pair, scale) for m, pair, scale in found)
        difference = _check(config, whole, read, updates)
    return Converted(out, trained_count(model, adapt), difference, [])


def _trained(config: Config, run: Path, step: int | None) -> dict:
    stored = CheckpointReader(run / "checkpoints", step, trained_only=True)
    read = {n: stored.param(n) for n, _ in trained_shapes(config.model, config.adapt)}
    return jax.tree.map(jax.numpy.asarray, nested(read))


def _factors(config: Config, run: Path, step: int | None) -> list[tuple[Module, Pair]]:
    """The factors of every module that has some."""
    stored = CheckpointReader(run / "checkpoints", step, trained_only=True)
    model, adapt = config.model, config.adapt
    layers = sorted(set(adapt.layers)) or list(range(model.layers))
    have = {name for name, _ in trained_shapes(model, adapt)}
    found = []
    for module in modules(model):
        if module.layer not in layers:
            continue
        at, factors = place(model, module, layers), {}
        for tensor in module.tensors:
            a, b = names(tensor.param, adapt.rank)
            if a in have:
                factors[tensor.param] = Pair(stored.param(a, at), stored.param(b, at))
        if factors:
            found.append((module, to_peft(model, module, factors)))
    return found


def _read_folder(folder: Path, model: ModelConfig) -> list[tuple[Module, Pair, float]]:
    """(module, factors, scale) of a PEFT folder. Raises UserError naming what does not fit."""
    settings = peft_config.read(folder, model)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has no {WEIGHTS}; save the adapter as safetensors.")
    files = safetensors.Tensors(folder, WEIGHTS)
    unused, found = set(files.shapes), []
    errors = []
    for module in modules(model):
        keys = [f"{PREFIX}{module.path}.lora_{side}.weight" for side in "AB"]
        present = [key for key in keys if key in files.shapes]
        unused -= set(present)
        if len(present) == 1:
            errors.append(f"{next(k for k in keys if k not in present)} is missing")
        if len(present) < 2:
            if settings.targets(module.path) and settings.has_layer(module.layer) and not present:
                errors.append(f"{keys[0]} is missing")
            continue
        pair = Pair(*(files.read(key).astype(np.float32) for key in keys))
        rank = settings.rank(module.path)
        shapes = (rank, module.shape[1]), (module.shape[0], rank)
        if (pair.a.shape, pair.b.shape) != shapes:
            errors.append(f"{keys[0]} and lora_B are {pair.a.shape}, {pair.b.shape}, not {shapes}")
            continue
        found.append((module, pair, settings.scale(module.path)))
    errors += [f"{key} fits no weight of this model" for key in sorted(unused)]
    if errors or not found:
        more = f", and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise UserError(
            f"{folder / WEIGHTS} does not fit the base: "
            f"{'; '.join(errors[:5]) or 'it has no tensors'}{more}."
        )
    return found


def _as_run(
    model: ModelConfig, found: list[tuple[Module, Pair, float]]
) -> tuple[AdaptConfig, dict[str, Array]]:
    """The config of an adapter, and its parameters by checkpoint name. A smaller rank is filled up
    with zeros, and another scale is in B."""
    rank, scale = max(len(pair.a) for _, pair, _ in found), found[0][2]
    layers = sorted({module.layer for module, _, _ in found})
    targets = dict.fromkeys(t.param for module, _, _ in found for t in module.tensors)
    every = layers == list(range(model.layers))
    stems = tuple(param.rpartition("/")[2].partition("_")[0] for param in targets)
    adapt = AdaptConfig(
        "lora", rank, scale * rank, targets=stems, layers=() if every else tuple(layers)
    )
    shapes = dict(trained_shapes(model, adapt))
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for module, pair, own in found:
        for param, (a, b) in from_peft(module, pair).items():
            name_a, name_b = names(param, rank)
            at, small = place(model, module, layers), len(pair.a)
            params[name_a][at][..., :small] = a
            params[name_b][at][:small] = b * (own / scale)
    return adapt, params


def _hf_reader(model: ModelConfig, base: dict) -> Read:
    """Reads the tensors that the base would have as a Hugging Face model."""
    tensors = hf_layout.by_name(hf_layout.tensors(model, hf_layout.family(model)))

    def read(name: str) -> Array:
        shared = tensors[name]
        params = [np.asarray(_param(base, tensor.param, tensor.layer)) for tensor in shared]
        return hf_layout.joined(shared, params)

    return read


def _param(params: dict, name: str, layer: int | None) -> Array:
    folder, _, leaf = name.rpartition("/")
    stack = params[folder][leaf] if is_stacked(name) else params[leaf]
    return stack if layer is None else stack[layer]


def _check(config: Config, whole: dict, base: Read, updates: dict[str, Array]) -> str:
    """Compares the logits of the merged model with those of the base and its update there."""
    model, dtype = config.model, config.precision.params
    length = config.data.sequence_length
    hf_config = hf_layout.to_config(model, length, dtype, 0)
    tokens_T = np.random.default_rng(0).integers(0, model.vocab_size, PROBE_TOKENS)
    tokens_T = tokens_T.astype(np.int32)
    ours = paxlike_logits(model, lambda name, layer: _param(whole, name, layer), tokens_T)
    none = {name: np.zeros_like(update) for name, update in updates.items()}
    theirs, plain = (
        hf_logits(hf_config, with_update(base, added), tokens_T) for added in (updates, none)
    )
    difference = float(np.abs(theirs - ours).max() / ours.std())
    change = float(np.abs(theirs - plain).max() / ours.std())
    if not difference <= TOLERANCE[dtype]:
        raise UserError(
            f"the logits of the converted adapter differ by {difference:.3g} of their standard "
            f"deviation (tolerance {TOLERANCE[dtype]}); nothing was written."
        )
    if not change:
        raise UserError(
            "the adapter does not change the base's logits (its B is 0): train it first. Nothing "
            "was written."
        )
    return (
        f"logits differ by at most {difference:.1e} of their standard deviation, and by "
        f"{change:.1e} from the base's"
    )
