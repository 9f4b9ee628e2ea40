"""What T5X calls our parameters, and the logical axes that its partitioner knows them by. Imports no JAX.

| here | `decoder/…` there | logical axes |
|---|---|---|
| `embedding_VD` | `token_embedder/embedding` [V, D] | vocab, embed |
| `blocks/scale_D` | `layers_i/pre_self_attention_layer_norm/scale` | embed |
| `blocks/feed_forward_scale_D` (serial) | `layers_i/pre_mlp_layer_norm/scale` | embed |
| `blocks/wq_DNH` | `layers_i/self_attention/query/kernel` [D, N·H] | embed, joined_kv |
| `blocks/wk_DKH`, `wv_DKH` | `…/key/kernel`, `…/value/kernel` [D, K·H] | embed, joined_kv; embed, kv where K < N: whole |
| `blocks/wo_NHD` | `…/out/kernel` [N·H, D] | joined_kv, embed |
| `blocks/wgate_DF`, `wup_DF` | `layers_i/mlp/wi_0/kernel`, `wi_1/kernel`; ungated: `wi/kernel` | embed, mlp |
| `blocks/wdown_FD` | `layers_i/mlp/wo/kernel` | mlp, embed |
| `scale_D` | `decoder_norm/scale` | embed |
| `head_DV` (untied) | `logits_dense/kernel` | embed, vocab |

V counts the rows that pad the vocabulary, as here. RoPE turns i with i + H/2, as here.
"""

from typing import NamedTuple

from paxlike.config import ModelConfig, UserError
from paxlike.parallel.axes import LOGICAL_AXES


class Leaf(NamedTuple):
    """One parameter of T5X's tree and ours that it is."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    ours: str
    """Checkpoint name: `blocks/wq_DNH`, of layer `layer`."""
    layer: int | None
    ours_shape: tuple[int, ...]
    """Of one layer: the same numbers in the same order, with heads and their width apart."""


def leaves(model: ModelConfig) -> list[Leaf]:
    """Every parameter. Raises UserError for a model that T5X cannot compute."""
    if model.quant.weights != "none":
        raise UserError(f"a model with quant.weights {model.quant.weights} is not one that T5X can compute.")
    D, F, N, K, H, V = model.d_model, model.d_ff, model.heads, model.kv_heads, model.head_dim, model.vocab_rows
    kv = "joined_kv" if K == N else "kv"
    up = ("wi_0", "wi_1") if model.gated else ("wi",)
    axes = LOGICAL_AXES
    of_layer = [
        ("pre_self_attention_layer_norm/scale", ("embed",), "scale_D", (D,)),
        ("self_attention/query/kernel", ("embed", "joined_kv"), "wq_DNH", (D, N, H)),
        ("self_attention/key/kernel", ("embed", kv), "wk_DKH", (D, K, H)),
        ("self_attention/value/kernel", ("embed", kv), "wv_DKH", (D, K, H)),
        ("self_attention/out/kernel", ("joined_kv", "embed"), "wo_NHD", (N, H, D)),
        *([("pre_mlp_layer_norm/scale", ("embed",), "feed_forward_scale_D", (D,))] if model.block == "serial" else []),
        *([("mlp/wi_0/kernel", (axes["D"], axes["F"]), "wgate_DF", (D, F))] if model.gated else []),
        (f"mlp/{up[-1]}/kernel", (axes["D"], axes["F"]), "wup_DF", (D, F)),
        ("mlp/wo/kernel", (axes["F"], axes["D"]), "wdown_FD", (F, D)),
    ]
    table = [_leaf("token_embedder/embedding", (axes["V"], axes["D"]), "embedding_VD", None, (V, D))]
    for layer in range(model.layers):
        table += [
            _leaf(f"layers_{layer}/{path}", names, f"blocks/{ours}", layer, shape)
            for path, names, ours, shape in of_layer
        ]
    table.append(_leaf("decoder_norm/scale", ("embed",), "scale_D", None, (D,)))
    if model.head == "untied":
        table.append(_leaf("logits_dense/kernel", (axes["D"], axes["V"]), "head_DV", None, (D, V)))
    return table


def _leaf(path: str, axes: tuple[str, ...], ours: str, layer: int | None, shape: tuple[int, ...]) -> Leaf:
    if len(shape) == 3:  # heads and their width are one dimension there
        flat = (shape[0] * shape[1], shape[2]) if ours.endswith("NHD") else (shape[0], shape[1] * shape[2])
    else:
        flat = shape
    return Leaf(("decoder", *path.split("/")), flat, axes, ours, layer, shape)
