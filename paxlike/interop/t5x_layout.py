"""How parameters correspond to T5X's, and their logical axes in its partitioner. Imports no JAX.

| paxlike | T5X, below `decoder/` | logical axes |
|---|---|---|
| `embedding_VD` | `token_embedder/embedding` [V, D] | vocab, embed |
| `blocks/scale_D` | `layers_i/pre_self_attention_layer_norm/scale` | embed |
| `blocks/feed_forward_scale_D` (serial) | `layers_i/pre_mlp_layer_norm/scale` | embed |
| `blocks/wq_DNH` | `layers_i/self_attention/query/kernel` [D, N·H] | embed, joined_kv |
| `blocks/wk_DKH`, `wv_DKH` | `…/key/kernel`, `…/value/kernel` [D, K·H] | embed, joined_kv (1) |
| `blocks/wo_NHD` | `…/out/kernel` [N·H, D] | joined_kv, embed |
| `blocks/wgate_DF`, `wup_DF` | `layers_i/mlp/wi_0/kernel`, `wi_1/kernel` (2) | embed, mlp |
| `blocks/wdown_FD` | `layers_i/mlp/wo/kernel` | mlp, embed |
| `scale_D` | `decoder_norm/scale` | embed |
| `head_DV` (untied) | `logits_dense/kernel` | embed, vocab |

(1) embed, kv if K < N, which replicates the heads. (2) Without a gate, `wup_DF` is `wi/kernel`.

In both, V includes the rows that pad the vocabulary, and RoPE rotates i with i + H/2.
"""

from typing import NamedTuple

from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.stack import groups, outer_weights
from paxlike.config import ModelConfig, UserError
from paxlike.parallel.axes import LOGICAL_AXES


class Leaf(NamedTuple):
    """A parameter of T5X's tree and the corresponding parameter of paxlike."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    param: str
    """Checkpoint name, such as `blocks/wq_DNH`; `layer` is its index there."""
    layer: int | None
    param_shape: tuple[int, ...]
    """Shape in one layer: the same elements in the same order, with heads and width separate."""


_PATHS = {
    "scale_D": "pre_self_attention_layer_norm/scale",
    "wq_DNH": "self_attention/query/kernel",
    "wk_DKH": "self_attention/key/kernel",
    "wv_DKH": "self_attention/value/kernel",
    "wo_NHD": "self_attention/out/kernel",
    "feed_forward_scale_D": "pre_mlp_layer_norm/scale",
    "wgate_DF": "mlp/wi_0/kernel",
    "wup_DF": "mlp/wi_1/kernel",
    "wdown_FD": "mlp/wo/kernel",
    "embedding_VD": "token_embedder/embedding",
    "head_DV": "logits_dense/kernel",
}
"""Weight -> its path in a T5X layer; for the last two, in the decoder."""
_DEFAULTS = (
    "norm_placement", "norm_offset", "qk_norm", "query_scale", "attention_softcap", "logit_scale",
    "logit_softcap", "embedding_scale", "learned_positions",
)  # fmt: skip
"""Fields of ModelConfig that T5X's decoder has no equivalent of."""


def leaves(model: ModelConfig) -> list[Leaf]:
    """Returns every parameter. Shapes and axes follow from the weights' letters.

    Raises UserError for a model that T5X cannot compute.
    """
    if model.quant.weights != "none":
        raise UserError(f"T5X cannot compute a model with quant.weights {model.quant.weights}.")
    if model.pattern:
        raise UserError(
            f"T5X's decoder repeats one kind of layer, not model.pattern {model.pattern}."
        )
    for field, values in (
        ("block", ("parallel", "serial")),
        ("feed_forward", ("swiglu", "gelu", "relu", "relu2")),
    ):
        if getattr(model, field) not in values:
            raise UserError(
                f"T5X's decoder has no {field} {getattr(model, field)}; it has {', '.join(values)}."
            )
    for field in _DEFAULTS:
        default = ModelConfig.__dataclass_fields__[field].default
        if getattr(model, field) != default:
            raise UserError(
                f"T5X's decoder has no {field} {getattr(model, field)}; it must be {default}."
            )
    ((group, block, layers),) = groups(model)
    specs = {spec.name: spec for spec in block.weights(model)}
    if unknown := sorted(set(specs) - set(_PATHS)):
        raise UserError(
            f"the weights {', '.join(unknown)} have no parameter in T5X's decoder; convert a model "
            "without biases."
        )
    embedding, *head, norm = outer_weights(model)
    table = [_leaf(model, embedding, _PATHS[embedding.name], "", None)]
    for layer in range(layers):
        for name, path in _PATHS.items():
            if name in specs:
                path = path if model.gated else path.replace("wi_1", "wi")
                table.append(
                    _leaf(model, specs[name], f"layers_{layer}/{path}", f"{group}/", layer)
                )
    table.append(_leaf(model, norm, "decoder_norm/scale", "", None))
    return table + [_leaf(model, spec, _PATHS[spec.name], "", None) for spec in head]


def _leaf(model: ModelConfig, spec: WeightSpec, path: str, prefix: str, layer: int | None) -> Leaf:
    """T5X joins heads and head width into one dimension."""
    heads = {"N": "joined_kv", "K": "joined_kv" if model.kv_heads == model.heads else "kv"}
    letters, shape = spec.letters, spec.shape(model)
    flat: list[int] = []
    axes: list[str] = []
    for letter, size in zip(letters, shape, strict=True):
        if letter == "H":
            flat[-1] *= size
        else:
            flat.append(size)
            axes.append(heads.get(letter) or LOGICAL_AXES[letter])
    theirs = ("decoder", *path.split("/"))
    return Leaf(theirs, tuple(flat), tuple(axes), prefix + spec.name, layer, shape)
