"""How models and parameters correspond to Hugging Face's: CohereForCausalLM and LlamaForCausalLM.

CohereForCausalLM is the PaLM decoder, LlamaForCausalLM the serial block with RMS norm.

| | Cohere | Llama |
|---|---|---|
| block, norm | parallel, layer norm without bias | serial, RMS norm |
| feed-forward | SwiGLU | SwiGLU |
| RoPE | pairs (2i, 2i + 1): query and key heads are permuted | half-split, as in paxlike |
| tied logits | scaled by `logit_scale`, 1/sqrt(d_model) | unscaled; scale is in the last norm |

A linear layer's weight is [outputs, inputs] in Hugging Face, and heads are one dimension with their
width: `wq_DNH` [D, N, H] is `q_proj` [N·H, D].
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.stack import groups
from paxlike.config import ModelConfig, UserError

Array = np.ndarray


class Tensor(NamedTuple):
    """A Hugging Face tensor and the corresponding parameter."""

    name: str
    shape: tuple[int, ...]
    param: str
    """Checkpoint name, such as `blocks/wq_DNH`; `layer` is its index there."""
    layer: int | None
    to_hf: Callable[[Array], Array]
    from_hf: Callable[[Array], Array]


def family(model: ModelConfig) -> str:
    """Returns `cohere` or `llama`. Raises UserError if neither has this block."""
    if model.quant.weights != "none":
        raise UserError(
            f"model.quant.weights is {model.quant.weights}: no Hugging Face model computes with "
            "quantized weights in this way."
        )
    if model.pattern:
        raise UserError(
            f"model.pattern is {' '.join(model.pattern)}: no Hugging Face model that loads "
            "without custom code mixes these blocks."
        )
    words = (model.block, model.norm, model.feed_forward)
    known = {("parallel", "layer", "swiglu"): "cohere", ("serial", "rms", "swiglu"): "llama"}
    if words not in known:
        raise UserError(
            f"a model with block {model.block}, norm {model.norm} and feed_forward "
            f"{model.feed_forward} has no equivalent in Hugging Face that loads without custom "
            "code; supported are parallel, layer, swiglu (CohereForCausalLM) and serial, rms, "
            "swiglu (LlamaForCausalLM)."
        )
    return known[words]


_NAMES = {
    "scale_D": "input_layernorm",
    "wq_DNH": "self_attn.q_proj",
    "wk_DKH": "self_attn.k_proj",
    "wv_DKH": "self_attn.v_proj",
    "wo_NHD": "self_attn.o_proj",
    "feed_forward_scale_D": "post_attention_layernorm",
    "wgate_DF": "mlp.gate_proj",
    "wup_DF": "mlp.up_proj",
    "wdown_FD": "mlp.down_proj",
}
"""A block's weight -> its module in Hugging Face, in the order of the forward pass."""


def tensors(model: ModelConfig) -> list[Tensor]:
    """Returns every tensor of the model's files, in the order of the forward pass.

    Padding rows are excluded. Shapes and transposes follow from the weights' letters. Raises
    UserError naming a weight without a tensor in the family.
    """
    D, V = model.d_model, model.vocab_size
    cohere = family(model) == "cohere"
    ((group, block, layers),) = groups(model)
    specs = {spec.name: spec for spec in block.weights(model)}
    if unknown := sorted(set(specs) - set(_NAMES)):
        raise UserError(
            f"the weights {', '.join(unknown)} have no tensor in a Hugging Face {family(model)} "
            "model; it has neither biases (model.attention_bias) nor query/key norms "
            "(model.qk_norm)."
        )
    rows = (lambda x: x[:V]), (lambda x: _padded(x, model.vocab_rows))
    table = [Tensor("model.embed_tokens.weight", (V, D), "embedding_VD", None, *rows)]
    for layer in range(layers):
        for name, module in _NAMES.items():
            if name in specs:
                rotated = cohere and name in ("wq_DNH", "wk_DKH")
                shape, out, back = _conversion(specs[name], model, rotated)
                theirs = f"model.layers.{layer}.{module}.weight"
                table.append(Tensor(theirs, shape, f"{group}/{name}", layer, out, back))
    factor = 1.0 if cohere else _logit_scale(model)
    out, back = (lambda x: times(x, factor)), (lambda x: times(x, 1 / factor))
    table.append(Tensor("model.norm.weight", (D,), "scale_D", None, out, back))
    if model.head == "untied":
        out, back = (lambda x: x[:, :V].T), (lambda x: _padded(x, model.vocab_rows).T)
        table.append(Tensor("lm_head.weight", (V, D), "head_DV", None, out, back))
    return table


def _conversion(
    spec: WeightSpec, model: ModelConfig, rotated: bool
) -> tuple[tuple[int, ...], Callable[[Array], Array], Callable[[Array], Array]]:
    """Returns (shape in Hugging Face, conversion to it, conversion from it).

    rotated: RoPE pairs the dimensions of a head as 2i and 2i + 1.
    """
    shape = spec.shape(model)
    if len(shape) == 1:
        return shape, lambda x: x, lambda x: x
    inner = 1 if spec.letters[0] == "D" else len(shape) - 1
    inputs = math.prod(shape[:inner])
    out, back = (_interleave, _split) if rotated else (lambda x: x, lambda x: x)
    return (
        (math.prod(shape[inner:]), inputs),
        lambda x: out(x).reshape(inputs, -1).T,
        lambda x: back(x.T.reshape(shape)),
    )


def _interleave(x: Array) -> Array:
    """Permutes [D, heads, H]: dimensions i and i + H/2, a RoPE pair, become 2i and 2i + 1."""
    D, heads, H = x.shape
    return x.reshape(D, heads, 2, H // 2).swapaxes(2, 3).reshape(x.shape)


def _split(x: Array) -> Array:
    D, heads, H = x.shape
    return x.reshape(D, heads, H // 2, 2).swapaxes(2, 3).reshape(x.shape)


def _logit_scale(model: ModelConfig) -> float:
    return model.d_model**-0.5 if model.head == "tied" else 1.0


def times(x: Array, factor: float) -> Array:
    """Returns x * factor, computed in float32 and rounded to the dtype of x."""
    return x if factor == 1 else (x.astype(np.float32) * factor).astype(x.dtype)


def _padded(x: Array, rows: int) -> Array:
    return np.concatenate([x, np.zeros((rows - len(x), x.shape[1]), x.dtype)])


def to_config(model: ModelConfig, sequence_length: int, dtype: str, eod: int) -> dict:
    """Returns the contents of config.json."""
    cohere = family(model) == "cohere"
    norm = (
        {"layer_norm_eps": model.norm_epsilon} if cohere else {"rms_norm_eps": model.norm_epsilon}
    )
    norm |= (
        {"logit_scale": _logit_scale(model), "use_qk_norm": False}
        if cohere
        else {"mlp_bias": False}
    )
    return {
        "architectures": ["CohereForCausalLM" if cohere else "LlamaForCausalLM"],
        "model_type": "cohere" if cohere else "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": sequence_length,
        "rope_theta": model.rope_theta,  # for versions before 5
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        **norm,
        "tie_word_embeddings": model.head == "tied",
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": eod,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def from_config(hf_config: dict) -> ModelConfig:
    """Returns the model of a config.json. Raises UserError for a missing or unsupported setting."""
    kind = hf_config.get("model_type")
    if kind not in ("cohere", "llama"):
        raise UserError(
            f"config.json has model_type {kind!r} ({hf_config.get('architectures')}); supported "
            "are cohere and llama."
        )
    cohere = kind == "cohere"
    for name, supported in _SUPPORTED.items():
        if hf_config.get(name, supported) not in (supported, None):
            raise UserError(
                f"config.json has {name} {hf_config[name]!r}; only {supported!r} is supported."
            )

    def require(name: str):
        if hf_config.get(name) is None:
            raise UserError(f"config.json has no {name}.")
        return hf_config[name]

    d_model, heads = require("hidden_size"), require("num_attention_heads")
    return ModelConfig(
        layers=require("num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=hf_config.get("num_key_value_heads") or heads,
        head_dim=hf_config.get("head_dim") or d_model // heads,
        d_ff=require("intermediate_size"),
        vocab_size=require("vocab_size"),
        block="parallel" if cohere else "serial",
        norm="layer" if cohere else "rms",
        feed_forward="swiglu",
        head="tied" if is_tied(hf_config) else "untied",
        rope_theta=rope_theta(hf_config),
        norm_epsilon=require("layer_norm_eps" if cohere else "rms_norm_eps"),
    )


_SUPPORTED = {
    "attention_bias": False, "mlp_bias": False, "use_qk_norm": False, "hidden_act": "silu",
    "quantization_config": None, "partial_rotary_factor": 1.0, "sliding_window": None,
}  # fmt: skip
"""Key of config.json -> its only supported value."""


def is_tied(hf_config: dict) -> bool:
    return hf_config.get("tie_word_embeddings", hf_config["model_type"] == "cohere")


def norm_factor(hf_config: dict, model: ModelConfig) -> float:
    """Returns the factor of the last norm's scale for a Cohere model.

    It compensates for a `logit_scale` other than paxlike's.
    """
    if hf_config["model_type"] == "llama":
        return 1.0
    return hf_config.get("logit_scale", 0.0625) / _logit_scale(model)


def rope_theta(hf_config: dict) -> float:
    """Returns the base of the rotary angles. Raises UserError if RoPE is scaled."""
    rope = {**(hf_config.get("rope_scaling") or {}), **(hf_config.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(
            f"config.json scales RoPE ({rope}), which is not supported; only rope_type default is."
        )
    theta = rope.get("rope_theta", hf_config.get("rope_theta"))
    if theta is None:
        raise UserError("config.json has no rope_theta.")
    return float(theta)
