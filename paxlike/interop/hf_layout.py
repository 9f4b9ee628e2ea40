"""How models and parameters correspond to Hugging Face's, for every family in `families/`.

A linear layer's weight is [outputs, inputs] in Hugging Face, and heads are one dimension with their
width: `wq_DNH` [D, N, H] is `q_proj` [N·H, D]. RoPE rotates a head's dimensions i and i + H/2
together; where a family rotates 2i and 2i + 1, query and key heads are permuted. Where a family
does not scale its logits and the model does, the last norm is written with the factor.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.stack import layer_places
from paxlike.config import ModelConfig, RopeScalingConfig, UserError
from paxlike.interop.families import FAMILIES, Family
from paxlike.interop.families.family import Conversion, no_sliding_window, required
from paxlike.interop.hf_rope import parameters, read_rope, rope_parameters

Array = np.ndarray


class Tensor(NamedTuple):
    """A Hugging Face tensor and the corresponding parameter. Several parameters can share one."""

    name: str
    shape: tuple[int, ...]
    param: str
    """Checkpoint name, such as `blocks/wq_DNH`; `layer` is its index there."""
    layer: int | None
    to_hf: Callable[[Array], Array]
    from_hf: Callable[[Array], Array]
    axis: int = 0
    """Along which the parts of a shared tensor are joined."""
    expert: int | None = None
    """The expert in the parameter, of which `from_hf` gives this one alone."""


def family(model: ModelConfig) -> Family:
    """The family of a model. Raises UserError if no Hugging Face model has its architecture."""
    if model.quant.weights != "none":
        raise UserError(
            f"model.quant.weights is {model.quant.weights}: no Hugging Face model computes with "
            "quantized weights in this way."
        )
    for one in FAMILIES:
        if one.has(model):
            return one
    fields = dict.fromkeys(field for one in FAMILIES for field in one.shape)
    given = ", ".join(f"{field} {getattr(model, field)}" for field in ("pattern", *fields))
    raise UserError(
        f"a model with {given} has no equivalent in Hugging Face that loads without custom code; "
        f"supported are the architectures of {', '.join(one.architecture for one in FAMILIES)}."
    )


def family_of(hf_config: dict) -> Family:
    """The family of a config.json. Raises UserError if it is not supported."""
    kind = hf_config.get("model_type")
    for one in FAMILIES:
        if one.model_type == kind:
            return one
    raise UserError(
        f"config.json has model_type {kind!r} ({hf_config.get('architectures')}); supported are "
        f"{', '.join(one.model_type for one in FAMILIES)}."
    )


def tensors(model: ModelConfig, of: Family) -> list[Tensor]:
    """Returns every tensor of the model's files in the family, in the order of the forward pass.

    Padding rows are excluded. Shapes and transposes follow from the weights' letters.
    """
    D, V = model.d_model, model.vocab_size
    rows = (lambda x: x[:V]), (lambda x: _padded(x, model.vocab_rows))
    table = [Tensor(of.outer["embedding_VD"], (V, D), "embedding_VD", None, *rows)]
    if model.learned_positions:
        shape = model.learned_positions, D
        table.append(Tensor(of.outer["positions_PD"], shape, "positions_PD", None, _same, _same))
    for layer, (group, index) in enumerate(layer_places(model)):
        specs = {spec.name: spec for spec in group.block.weights(model)}
        for name, tensor in of.names.items():
            if name in specs and "{expert}" in tensor:
                place = Place(f"{of.layers}.{layer}.{tensor}", f"{group.name}/{name}", index)
                table += _of_experts(place, specs[name].shape(model))
            elif name in specs:
                rotated = of.interleaved and name in ("wq_DNH", "wk_DKH")
                how = of.convert(specs[name], model) or _conversion(specs[name], model, rotated)
                theirs = f"{of.layers}.{layer}.{tensor}"
                table.append(Tensor(theirs, how.shape, f"{group.name}/{name}", index, *how[1:]))
    factor = 1.0 if of.scaled_logits else model.logits_factor
    for name in ("scale_D", "norm_bias_D"):
        if name in of.outer:
            out, back = _last_norm(factor, model.norm_offset)
            table.append(Tensor(of.outer[name], (D,), name, None, out, back))
    if model.head == "untied":
        out, back = (lambda x: x[:, :V].T), (lambda x: _padded(x, model.vocab_rows).T)
        table.append(Tensor(of.outer["head_DV"], (V, D), "head_DV", None, out, back))
    return table


class Place(NamedTuple):
    """A name with `{expert}` in it, and the parameter that has all experts."""

    name: str
    param: str
    layer: int


def _of_experts(place: Place, shape: tuple[int, ...]) -> list[Tensor]:
    """The tensors of a parameter [experts, inputs, outputs]: [outputs, inputs] of each."""
    count, inputs, outputs = shape

    def tensor(expert: int) -> Tensor:
        name = place.name.format(expert=expert)
        out = lambda x: x[expert].T  # noqa: E731
        how = out, (lambda x: x.T), 0, expert
        return Tensor(name, (outputs, inputs), place.param, place.layer, *how)

    return [tensor(expert) for expert in range(count)]


def by_name(table: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    """Name -> the parameters that share the tensor, in order."""
    found: dict[str, list[Tensor]] = {}
    for tensor in table:
        found.setdefault(tensor.name, []).append(tensor)
    return found


def joined(shared: Sequence[Tensor], params: Sequence[Array]) -> Array:
    """The tensor of the parameters that share it."""
    parts = [tensor.to_hf(param) for tensor, param in zip(shared, params, strict=True)]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts, shared[0].axis)
    return whole.reshape(shared[0].shape)


def _conversion(spec: WeightSpec, model: ModelConfig, rotated: bool) -> Conversion:
    """The usual correspondence. rotated: RoPE pairs the dimensions of a head as 2i and 2i + 1."""
    shape = spec.shape(model)
    if spec.kind not in ("kernel", "router"):
        # A scale, or a bias of heads that are one dimension there.
        whole = (math.prod(shape),)
        return Conversion(whole, lambda x: x.reshape(-1), lambda x: x.reshape(shape))
    inner = 1 if spec.letters[0] == "D" else len(shape) - 1
    inputs = math.prod(shape[:inner])
    out, back = (interleave, split_pairs) if rotated else (lambda x: x, lambda x: x)
    return Conversion(
        (math.prod(shape[inner:]), inputs),
        lambda x: out(x).reshape(inputs, -1).T,
        lambda x: back(x.T.reshape(shape)),
    )


def interleave(x: Array) -> Array:
    """Permutes the last dimension H: i and i + H/2, a RoPE pair, become 2i and 2i + 1."""
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-2, -1).reshape(x.shape)


def split_pairs(x: Array) -> Array:
    """The inverse of `interleave`."""
    return x.reshape(*x.shape[:-1], -1, 2).swapaxes(-2, -1).reshape(x.shape)


def _same(x: Array) -> Array:
    return x


def _last_norm(factor: float, offset: bool) -> tuple[Callable, Callable]:
    """The last norm's scale or bias with the factor of the logits, and without."""
    if not offset:
        return (lambda x: times(x, factor)), (lambda x: times(x, 1 / factor))

    def scaled(x: Array, factor: float) -> Array:
        return x if factor == 1 else ((1 + x.astype(np.float32)) * factor - 1).astype(x.dtype)

    return (lambda x: scaled(x, factor)), (lambda x: scaled(x, 1 / factor))


def times(x: Array, factor: float) -> Array:
    """Returns x * factor, computed in float32 and rounded to the dtype of x."""
    return x if factor == 1 else (x.astype(np.float32) * factor).astype(x.dtype)


def _padded(x: Array, rows: int) -> Array:
    if len(x) == rows:
        return x
    return np.concatenate([x, np.zeros((rows - len(x), x.shape[1]), x.dtype)])


def to_config(model: ModelConfig, sequence_length: int, dtype: str, eod: int) -> dict:
    """Returns the contents of config.json."""
    of, rope = family(model), rope_parameters(model)
    scaled = {} if model.rope_scaling.kind == "none" else {"rope_scaling": rope}
    # `rope_theta` and `rope_scaling` are for versions before 5.
    rotary = {"rope_theta": model.rope_theta, **scaled, "rope_parameters": rope} if of.rope else {}
    usual = {
        "architectures": [of.architecture],
        "model_type": of.model_type,
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "attention_bias": model.attention_bias != "none",
        "attention_dropout": 0.0,
        # transformers gives the learned positions of GPT-2 this size.
        "max_position_embeddings": model.learned_positions or sequence_length,
        **rotary,
        of.epsilon: model.norm_epsilon,
        **({"logit_scale": model.logits_factor} if of.scaled_logits else {}),
        **of.keys(model),
        "tie_word_embeddings": model.head == "tied",
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": eod,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    return {of.renamed.get(key, key): value for key, value in usual.items()}


def from_config(hf_config: dict) -> ModelConfig:
    """Returns the model of a config.json. Raises UserError for a missing or unsupported setting."""
    of = family_of(hf_config)
    hf_config = {**hf_config, **{ours: hf_config.get(key) for ours, key in of.renamed.items()}}
    for name, values in {**_SUPPORTED, **of.supported}.items():
        if hf_config.get(name) not in (*values, None):
            raise UserError(
                f"config.json has {name} {hf_config[name]!r}; supported for {of.model_type} is "
                f"{' or '.join(map(repr, values)) or 'no value'}."
            )
    rope_fraction = parameters(hf_config).get("partial_rotary_factor", 1.0)
    if "rope_fraction" not in of.shape and rope_fraction != 1.0:
        raise UserError(
            f"config.json has partial_rotary_factor {rope_fraction}; it must be 1 for "
            f"{of.model_type}."
        )
    windows = any(block.endswith("_local") for block in of.shape["block"])
    if not windows and not no_sliding_window(hf_config):
        raise UserError(
            f"config.json has sliding_window {hf_config['sliding_window']!r}, less than "
            f"max_position_embeddings {hf_config.get('max_position_embeddings')}; a sliding window "
            f"is not supported for {of.model_type}."
        )

    require = functools.partial(required, hf_config)
    d_model, heads = require("hidden_size"), require("num_attention_heads")
    theta, scaling = read_rope(hf_config) if of.rope else (10_000.0, RopeScalingConfig())
    shape = {field: values[0] for field, values in of.shape.items() if values}
    shape |= of.options(hf_config)
    head: Literal["tied", "untied"] = "tied" if is_tied(hf_config) else "untied"
    logit_scale = hf_config.get("logit_scale", 0.0625) if of.scaled_logits else 1.0
    return ModelConfig(
        layers=require("num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=hf_config.get("num_key_value_heads") or heads,
        head_dim=hf_config.get("head_dim") or d_model // heads,
        d_ff=hf_config.get("intermediate_size") or _default_d_ff(hf_config, of),
        vocab_size=require("vocab_size"),
        head=head,
        logit_scale=0.0 if head == "untied" and logit_scale == 1 else float(logit_scale),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=require(of.epsilon),
        **shape,
    )


_SUPPORTED: dict[str, tuple] = {"quantization_config": ()}
"""Key of config.json -> its supported values, in every family."""


def is_tied(hf_config: dict) -> bool:
    return hf_config.get("tie_word_embeddings", family_of(hf_config).tied)


def _default_d_ff(hf_config: dict, of: Family) -> int:
    """GPT-2's n_inner is null for four times the width. Raises UserError for other families."""
    if "intermediate_size" not in of.renamed:
        raise UserError("config.json has no intermediate_size.")
    return 4 * hf_config["hidden_size"]
