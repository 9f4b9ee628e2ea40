"""GPT-2: learned positions, layer norms with biases, and matrices stored inputs first."""

from typing import Any

import numpy as np

from paxlike.architecture.branch import WeightSpec
from paxlike.config import ModelConfig
from paxlike.interop.families.family import Conversion, Family

_ACTIVATIONS = {
    "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu": "relu"
}  # fmt: skip


def _convert(spec: WeightSpec, model: ModelConfig) -> Conversion | None:
    """Kernels are [inputs, outputs]. Queries, keys and values share one: outputs [3, N, H]."""
    D, width = model.d_model, model.heads * model.head_dim
    part = {"wq": 0, "wk": 1, "wv": 2, "bq": 0, "bk": 1, "bv": 2}.get(spec.name.partition("_")[0])
    if part is not None:
        at, shape = slice(part * width, (part + 1) * width), spec.shape(model)
        if spec.kind == "bias":
            return Conversion((3 * width,), lambda x: x.reshape(-1), lambda x: x[at].reshape(shape))
        return Conversion(
            (D, 3 * width),
            lambda x: x.reshape(D, -1),
            lambda x: x[:, at].reshape(shape),
            axis=1,
        )
    if spec.kind != "kernel":
        return None
    shape = spec.shape(model)
    matrix = (D, shape[1]) if spec.letters[0] == "D" else (int(np.prod(shape[:-1])), D)
    return Conversion(matrix, lambda x: x.reshape(matrix), lambda x: x.reshape(shape))


def _options(hf_config: dict) -> dict[str, Any]:
    act = hf_config.get("activation_function", "gelu_new")
    return {
        "learned_positions": hf_config.get("n_positions", 1024),
        "feed_forward": _ACTIVATIONS.get(act, "gelu"),
    }


def _keys(model: ModelConfig) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return {
        "activation_function": names[model.feed_forward],
        "n_positions": model.learned_positions,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    }


def _fits(model: ModelConfig) -> bool:
    heads = model.kv_heads == model.heads and model.heads * model.head_dim == model.d_model
    return heads and model.learned_positions > 0


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    shape={
        "block": ("serial",),
        "norm": ("layer",),
        "norm_bias": (True,),
        "feed_forward": ("gelu", "gelu_exact", "relu"),
        "feed_forward_bias": (True,),
        "attention_bias": ("qkvo",),
        "learned_positions": (),
    },
    supported={
        "activation_function": tuple(_ACTIVATIONS),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    epsilon="layer_norm_epsilon",
    names={
        "scale_D": "ln_1.weight",
        "norm_bias_D": "ln_1.bias",
        "wq_DNH": "attn.c_attn.weight",
        "wk_DKH": "attn.c_attn.weight",
        "wv_DKH": "attn.c_attn.weight",
        "bq_NH": "attn.c_attn.bias",
        "bk_KH": "attn.c_attn.bias",
        "bv_KH": "attn.c_attn.bias",
        "wo_NHD": "attn.c_proj.weight",
        "bo_D": "attn.c_proj.bias",
        "feed_forward_scale_D": "ln_2.weight",
        "feed_forward_norm_bias_D": "ln_2.bias",
        "wup_DF": "mlp.c_fc.weight",
        "bup_F": "mlp.c_fc.bias",
        "wdown_FD": "mlp.c_proj.weight",
        "bdown_D": "mlp.c_proj.bias",
    },
    layers="transformer.h",
    outer={
        "embedding_VD": "transformer.wte.weight",
        "positions_PD": "transformer.wpe.weight",
        "scale_D": "transformer.ln_f.weight",
        "norm_bias_D": "transformer.ln_f.bias",
        "head_DV": "lm_head.weight",
    },
    convert=_convert,
    tied=True,
    rope=False,
    renamed={
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
    },
    inputs_first=True,
    optional_prefix="transformer.",
    fits=_fits,
    options=_options,
    keys=_keys,
    ignored=(".attn.bias", ".attn.masked_bias"),
)
