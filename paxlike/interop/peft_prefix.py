"""Prefixes as folders of PEFT: one tensor `prompt_embeddings`, [positions, layers * 2 * heads * H].

A row has a position's keys and values: K, then V of every layer. PEFT puts them in front of a
cache, so keys are as attention reads them, after RoPE, in the order of a head's dimensions there.
Its network (`prefix_projection`) is never in a folder: the keys and values that it computes are.
"""

import jax
import numpy as np

from paxlike.adapt.prefix import flattened
from paxlike.architecture.prefix import DIRECT
from paxlike.architecture.stack import layer_places
from paxlike.config import AdaptConfig, Config, ModelConfig, UserError
from paxlike.interop.hf_layout import family, interleave, split_pairs
from paxlike.interop.hf_numpy import Past
from paxlike.interop.peft_folder import SETTINGS, Array, Folder, Format, Loaded, Read, Written
from paxlike.training.loaded_run import numerics_of

TENSOR = "prompt_embeddings"
_SUPPORTED: dict[str, tuple] = {"num_transformer_submodules": (1,), "modules_to_save": (None, [])}


def _write(config: Config, trained: dict) -> Written:
    model, adapt = config.model, config.adapt
    prefixes = jax.device_get(flattened(model, adapt, numerics_of(config), trained))
    layers = [(prefixes[group.name], at) for group, at in layer_places(model)]
    k_LQKH = np.stack([prefix.k[at] for prefix, at in layers])
    v_LQKH = np.stack([prefix.v[at] for prefix, at in layers])
    if family(model).interleaved:
        k_LQKH = interleave(k_LQKH)
    rows = np.stack((k_LQKH, v_LQKH), 1).transpose(2, 0, 1, 3, 4).reshape(adapt.prefix_length, -1)
    settings = {
        **_sizes(model),
        "num_virtual_tokens": adapt.prefix_length,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
        "encoder_hidden_size": _sizes(model)["token_dim"],
    }
    return Written(settings, {TENSOR: rows})


def _sizes(model: ModelConfig) -> dict[str, int]:
    """Heads are those of keys and values."""
    return {
        "num_layers": model.layers,
        "num_attention_heads": model.kv_heads,
        "token_dim": model.kv_heads * model.head_dim,
    }


def _read(folder: Folder, model: ModelConfig) -> Loaded:
    folder.check_settings(_SUPPORTED)
    for name, size in _sizes(model).items():
        if (found := folder.settings.get(name, size)) != size:
            raise UserError(f"{folder.path / SETTINGS} has {name} {found}; the base has {size}.")
    rows, of = _rows(folder, model), family(model)
    shape = (-1, model.layers, 2, model.kv_heads, model.head_dim)
    k_LQKH, v_LQKH = rows.reshape(shape).transpose(2, 1, 0, 3, 4)
    past = Past(tuple(zip(k_LQKH, v_LQKH, strict=True)))
    if of.interleaved:
        k_LQKH = split_pairs(k_LQKH)
    params: dict[str, list[Array]] = {}
    for layer, (group, _) in enumerate(layer_places(model)):
        for name, stack in zip(DIRECT, (k_LQKH, v_LQKH), strict=True):
            params.setdefault(f"{group.name}/{name}", []).append(stack[layer])

    def adapted(base: Read) -> tuple[Read, Past]:
        return base, past

    adapt = AdaptConfig("prefix", prefix_length=len(rows), prefix_hidden=0)
    return Loaded(adapt, {name: np.stack(layers) for name, layers in params.items()}, adapted)


def _rows(folder: Folder, model: ModelConfig) -> Array:
    """The tensor. Raises UserError if it is missing or of another shape, or another is there."""
    files = folder.tensors()
    length = folder.settings.get("num_virtual_tokens")
    expected = (length, model.layers * 2 * model.kv_heads * model.head_dim)
    errors = [f"{name} is no part of a prefix" for name in sorted(files.shapes) if name != TENSOR]
    if TENSOR not in files.shapes:
        errors.insert(0, f"{TENSOR} is missing")
    elif (shape := files.shapes[TENSOR]) != expected:
        projected = bool(folder.settings.get("prefix_projection"))
        errors.insert(
            0,
            f"{TENSOR} is {shape}, not {expected} (num_virtual_tokens, num_layers * 2 * token_dim)"
            + "; with prefix_projection, PEFT saves what its network computes" * projected,
        )
    if errors:
        raise folder.misfit(errors)
    return files.read(TENSOR).astype(np.float32)


PREFIX_TUNING = Format("PREFIX_TUNING", _write, _read)
