"""GPT-NeoX and Pythia (arXiv 2204.06745, 2304.01373): a parallel block with two norms, biases
everywhere, and RoPE of a part of each head.
"""

from typing import Any

import numpy as np

from paxlike.architecture.branch import WeightSpec
from paxlike.config import ModelConfig
from paxlike.interop.families.family import Conversion, Family

_QKV = "attention.query_key_value"


def _convert(spec: WeightSpec, model: ModelConfig) -> Conversion | None:
    """Queries, keys and values share a tensor: [N, 3, H] outputs."""
    part = {"q": 0, "k": 1, "v": 2}.get(spec.name[1])
    if part is None or spec.name[0] not in "wb" or spec.name[2] != "_":
        return None
    N, H, D = model.heads, model.head_dim, model.d_model
    if spec.kind == "bias":
        return Conversion(
            (3 * N * H,),
            lambda x: x[:, None],
            lambda x: x.reshape(N, 3, H)[:, part],
            axis=1,
        )
    return Conversion(
        (3 * N * H, D),
        lambda x: np.moveaxis(x, 0, -1)[:, None],
        lambda x: np.moveaxis(x.reshape(N, 3, H, D)[:, part], -1, 0),
        axis=1,
    )


def _options(hf_config: dict) -> dict[str, Any]:
    parallel = hf_config.get("use_parallel_residual", True)
    rope = hf_config.get("rope_parameters") or {}
    fraction = rope.get("partial_rotary_factor", hf_config.get("rotary_pct", 0.25))
    act = {"gelu": "gelu_exact", "relu": "relu"}.get(hf_config.get("hidden_act", "gelu"), "gelu")
    return {
        "block": "parallel_two_norms" if parallel else "serial",
        "feed_forward": act,
        "rope_fraction": float(fraction),
    }


def _keys(model: ModelConfig) -> dict[str, Any]:
    act = {"gelu_exact": "gelu", "relu": "relu", "gelu": "gelu_new"}[model.feed_forward]
    return {
        "hidden_act": act,
        "use_parallel_residual": model.block == "parallel_two_norms",
        "rotary_pct": model.rope_fraction,
        "rotary_emb_base": model.rope_theta,
        "attention_bias": True,
    }


GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    shape={
        "block": ("parallel_two_norms", "serial"),
        "norm": ("layer",),
        "norm_bias": (True,),
        "feed_forward": ("gelu_exact", "gelu", "relu"),
        "feed_forward_bias": (True,),
        "attention_bias": ("qkvo",),
        "rope_fraction": (),
    },
    supported={
        "attention_bias": (True,),
        "hidden_act": ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu"),
    },
    epsilon="layer_norm_eps",
    names={
        "scale_D": "input_layernorm.weight",
        "norm_bias_D": "input_layernorm.bias",
        "wq_DNH": f"{_QKV}.weight",
        "wk_DKH": f"{_QKV}.weight",
        "wv_DKH": f"{_QKV}.weight",
        "bq_NH": f"{_QKV}.bias",
        "bk_KH": f"{_QKV}.bias",
        "bv_KH": f"{_QKV}.bias",
        "wo_NHD": "attention.dense.weight",
        "bo_D": "attention.dense.bias",
        "feed_forward_scale_D": "post_attention_layernorm.weight",
        "feed_forward_norm_bias_D": "post_attention_layernorm.bias",
        "wup_DF": "mlp.dense_h_to_4h.weight",
        "bup_F": "mlp.dense_h_to_4h.bias",
        "wdown_FD": "mlp.dense_4h_to_h.weight",
        "bdown_D": "mlp.dense_4h_to_h.bias",
    },
    layers="gpt_neox.layers",
    outer={
        "embedding_VD": "gpt_neox.embed_in.weight",
        "scale_D": "gpt_neox.final_layer_norm.weight",
        "norm_bias_D": "gpt_neox.final_layer_norm.bias",
        "head_DV": "embed_out.weight",
    },
    convert=_convert,
    options=_options,
    keys=_keys,
    ignored=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
)
