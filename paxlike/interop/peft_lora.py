"""LoRA adapters as folders of PEFT: `base_model.model.MODULE.lora_A.weight` and `lora_B`."""

from typing import NamedTuple

import numpy as np

from paxlike.accounting.adapted_parameters import trained_shapes
from paxlike.config import AdaptConfig, Config, ModelConfig
from paxlike.interop import peft_lora_config
from paxlike.interop.hf_numpy import NO_PAST, Past
from paxlike.interop.peft_folder import Array, Folder, Format, Loaded, Read, Written
from paxlike.interop.peft_lora_layout import (
    PREFIX,
    Module,
    Pair,
    from_peft,
    modules,
    names,
    place,
    to_peft,
    with_update,
)


class _Found(NamedTuple):
    """The factors of a module."""

    module: Module
    pair: Pair
    scale: float


def _write(config: Config, trained: dict) -> Written:
    """Raises UserError if the layout of a module cannot be expressed."""
    found = _factors(config, trained)
    ranks = {module.path: len(pair.a) for module, pair in found}
    tensors = {
        f"{PREFIX}{module.path}.lora_{side}.weight": value
        for module, pair in found
        for side, value in zip("AB", pair, strict=True)
    }
    return Written(peft_lora_config.written(config, ranks), tensors)


def _factors(config: Config, trained: dict) -> list[tuple[Module, Pair]]:
    """The factors of every module that has some."""
    model, adapt = config.model, config.adapt
    layers = sorted(set(adapt.layers)) or list(range(model.layers))
    found = []
    for module in modules(model):
        if module.layer not in layers:
            continue
        at, factors = place(model, module, layers), {}
        for tensor in module.tensors:
            group, _, a = names(tensor.param, adapt.rank)[0].rpartition("/")
            b = names(tensor.param, adapt.rank)[1].rpartition("/")[2]
            if a in trained.get(group, {}):
                factors[tensor.param] = Pair(trained[group][a][at], trained[group][b][at])
        if factors:
            found.append((module, to_peft(model, module, factors)))
    return found


def _read(folder: Folder, model: ModelConfig) -> Loaded:
    found = _modules(folder, model)
    updates = dict(one.module.update(one.pair, one.scale) for one in found)

    def adapted(base: Read) -> tuple[Read, Past]:
        return with_update(base, updates), NO_PAST

    return Loaded(*_as_run(model, found), adapted)


def _modules(folder: Folder, model: ModelConfig) -> list[_Found]:
    settings, files = peft_lora_config.read(folder, model), folder.tensors()
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
        found.append(_Found(module, pair, settings.scale(module.path)))
    errors += [f"{key} fits no weight of this model" for key in sorted(unused)]
    if errors or not found:
        raise folder.misfit(errors or ["it has no tensors"])
    return found


def _as_run(model: ModelConfig, found: list[_Found]) -> tuple[AdaptConfig, dict[str, Array]]:
    """The config of an adapter, and its parameters by checkpoint name. A smaller rank is filled up
    with zeros, and another scale is in B."""
    rank, scale = max(len(pair.a) for _, pair, _ in found), found[0].scale
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


LORA = Format("LORA", _write, _read)
