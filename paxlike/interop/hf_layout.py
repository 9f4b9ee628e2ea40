"""What Hugging Face calls our models: CohereForCausalLM is the PaLM decoder, LlamaForCausalLM the serial block with RMS norm.

| | Cohere | Llama |
|---|---|---|
| block, norm | parallel, layer norm without bias | serial, RMS norm |
| feed-forward | SwiGLU | SwiGLU |
| RoPE | pairs (2i, 2i + 1): heads of queries and keys are permuted | half-split, as here |
| logits of a tied head | times `logit_scale`, 1/sqrt(d_model) | not scaled: our factor goes into the last norm |

A linear layer's weight is [outputs, inputs] there, and the heads are one dimension: `wq_DNH` [D, N, H] is `q_proj` [N·H, D].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from paxlike.config import ModelConfig, UserError

Array = np.ndarray


class Tensor(NamedTuple):
    """One tensor of theirs and the one of ours that it is."""

    name: str
    shape: tuple[int, ...]
    ours: str
    """Checkpoint name: `blocks/wq_DNH`, of layer `layer`."""
    layer: int | None
    to_hf: Callable[[Array], Array]
    from_hf: Callable[[Array], Array]


def family(model: ModelConfig) -> str:
    """`cohere` or `llama`. Raises UserError where neither has this block."""
    if model.quant.weights != "none":
        raise UserError(
            f"a model with quant.weights {model.quant.weights} computes with quantized weights, which no Hugging Face model does."
        )
    words = (model.block, model.norm, model.feed_forward)
    known = {("parallel", "layer", "swiglu"): "cohere", ("serial", "rms", "swiglu"): "llama"}
    if words not in known:
        raise UserError(
            f"a model with block {model.block}, norm {model.norm} and feed_forward {model.feed_forward} is no Hugging Face "
            "model that loads without custom code; parallel, layer, swiglu (CohereForCausalLM) and serial, rms, swiglu "
            "(LlamaForCausalLM) are."
        )
    return known[words]


def tensors(model: ModelConfig) -> list[Tensor]:
    """Every tensor of the model's files, in the order of the forward pass. Our embedding's padding rows are left out."""
    D, F, N, K, H, V = model.d_model, model.d_ff, model.heads, model.kv_heads, model.head_dim, model.vocab_size
    interleaved = family(model) == "cohere"
    same = lambda x: x  # noqa: E731
    turned = lambda x: x.T  # noqa: E731

    def heads(count: int, rope: bool):
        out, back = (_interleave, _split) if rope and interleaved else (same, same)
        return lambda x: out(x).reshape(D, -1).T, lambda x: back(x.T.reshape(D, count, H))

    rows = (lambda x: x[:V]), (lambda x: _padded(x, model.vocab_rows))
    after = "post_attention_layernorm"
    of_layer = [
        ("input_layernorm", (D,), "scale_D", same, same),
        ("self_attn.q_proj", (N * H, D), "wq_DNH", *heads(N, True)),
        ("self_attn.k_proj", (K * H, D), "wk_DKH", *heads(K, True)),
        ("self_attn.v_proj", (K * H, D), "wv_DKH", *heads(K, False)),
        ("self_attn.o_proj", (D, N * H), "wo_NHD", lambda x: x.reshape(-1, D).T, lambda x: x.T.reshape(N, H, D)),
        *([] if interleaved else [(after, (D,), "feed_forward_scale_D", same, same)]),
        ("mlp.gate_proj", (F, D), "wgate_DF", turned, turned),
        ("mlp.up_proj", (F, D), "wup_DF", turned, turned),
        ("mlp.down_proj", (D, F), "wdown_FD", turned, turned),
    ]
    table = [Tensor("model.embed_tokens.weight", (V, D), "embedding_VD", None, *rows)]
    for layer in range(model.layers):
        for name, shape, ours, out, back in of_layer:
            table.append(Tensor(f"model.layers.{layer}.{name}.weight", shape, f"blocks/{ours}", layer, out, back))
    factor = 1.0 if interleaved else _logit_scale(model)
    out, back = (lambda x: times(x, factor)), (lambda x: times(x, 1 / factor))
    table.append(Tensor("model.norm.weight", (D,), "scale_D", None, out, back))
    if model.head == "untied":
        out, back = (lambda x: x[:, :V].T), (lambda x: _padded(x, model.vocab_rows).T)
        table.append(Tensor("lm_head.weight", (V, D), "head_DV", None, out, back))
    return table


def _interleave(x: Array) -> Array:
    """[D, heads, H]: dimensions i and i + H/2, which are turned together, become 2i and 2i + 1."""
    D, heads, H = x.shape
    return x.reshape(D, heads, 2, H // 2).swapaxes(2, 3).reshape(x.shape)


def _split(x: Array) -> Array:
    D, heads, H = x.shape
    return x.reshape(D, heads, H // 2, 2).swapaxes(2, 3).reshape(x.shape)


def _logit_scale(model: ModelConfig) -> float:
    return model.d_model**-0.5 if model.head == "tied" else 1.0


def times(x: Array, factor: float) -> Array:
    """x * factor in float32, rounded to the dtype of x."""
    return x if factor == 1 else (x.astype(np.float32) * factor).astype(x.dtype)


def _padded(x: Array, rows: int) -> Array:
    return np.concatenate([x, np.zeros((rows - len(x), x.shape[1]), x.dtype)])


def to_config(model: ModelConfig, sequence_length: int, dtype: str, eod: int) -> dict:
    """Their config.json."""
    cohere = family(model) == "cohere"
    norm = {"layer_norm_eps": model.norm_epsilon} if cohere else {"rms_norm_eps": model.norm_epsilon}
    norm |= {"logit_scale": _logit_scale(model), "use_qk_norm": False} if cohere else {"mlp_bias": False}
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
        "rope_theta": model.rope_theta,  # what versions before 5 read
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        **norm,
        "tie_word_embeddings": model.head == "tied",
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": eod,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def from_config(told: dict) -> ModelConfig:
    """The model that a config.json describes. Raises UserError naming what is not supported or not there."""
    kind = told.get("model_type")
    if kind not in ("cohere", "llama"):
        raise UserError(
            f"config.json is of a model of type {kind!r} ({told.get('architectures')}); cohere and llama can be read."
        )
    cohere = kind == "cohere"
    for name, wanted in _WANTED.items():
        if told.get(name, wanted) not in (wanted, None):
            raise UserError(f"config.json has {name} {told[name]!r}, which is not supported; only {wanted!r} is.")

    def need(name: str):
        if told.get(name) is None:
            raise UserError(f"config.json has no {name}.")
        return told[name]

    d_model, heads = need("hidden_size"), need("num_attention_heads")
    return ModelConfig(
        layers=need("num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=told.get("num_key_value_heads") or heads,
        head_dim=told.get("head_dim") or d_model // heads,
        d_ff=need("intermediate_size"),
        vocab_size=need("vocab_size"),
        block="parallel" if cohere else "serial",
        norm="layer" if cohere else "rms",
        feed_forward="swiglu",
        head="tied" if is_tied(told) else "untied",
        rope_theta=rope_theta(told),
        norm_epsilon=need("layer_norm_eps" if cohere else "rms_norm_eps"),
    )


_WANTED = {
    "attention_bias": False, "mlp_bias": False, "use_qk_norm": False, "hidden_act": "silu", "quantization_config": None,
    "partial_rotary_factor": 1.0, "sliding_window": None,
}  # fmt: skip
"""Key of their config -> the one value with which these models are ours."""


def is_tied(told: dict) -> bool:
    return told.get("tie_word_embeddings", told["model_type"] == "cohere")


def norm_factor(told: dict, model: ModelConfig) -> float:
    """What a Cohere model's last norm is to be multiplied by, because its logits are scaled by another factor than ours."""
    if told["model_type"] == "llama":
        return 1.0
    return told.get("logit_scale", 0.0625) / _logit_scale(model)


def rope_theta(told: dict) -> float:
    """The base of the rotary angles. Raises UserError where they are scaled."""
    rope = {**(told.get("rope_scaling") or {}), **(told.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"config.json scales RoPE ({rope}), which is not supported; only the plain kind is.")
    theta = rope.get("rope_theta", told.get("rope_theta"))
    if theta is None:
        raise UserError("config.json has no rope_theta.")
    return float(theta)
