"""A T5X checkpoint as the source of parameters. It has no config and no tokenizer.

Sizes follow from the shapes of its tree; what they do not tell (RoPE, the kind of norm, the width
of a head) is taken from the run's own config.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from paxlike.config import ModelConfig
from paxlike.interop import t5x
from paxlike.interop.t5x_layout import leaves


class T5xSource:
    """A folder such as checkpoint_1000, or the file `checkpoint` in it."""

    def __init__(self, path: Path, model: ModelConfig):
        """model: of the run. Raises UserError if it is no T5X checkpoint of a decoder, or a
        parameter is missing, unexpected or misshapen.
        """
        self._folder, index = t5x.read_index(path)
        self._found = t5x.flatten(t5x.get(index, "optimizer", "target"))
        shapes = {name: t5x.shape_of(value) or () for name, value in self._found.items()}
        self.model = model_of(shapes, model)
        table = leaves(self.model)
        t5x.check_tree(self._found, table)
        self._leaves = {(leaf.param, leaf.layer): leaf for leaf in table}
        self.name = f"the T5X checkpoint {path}"
        value = self._found["/".join(table[0].path)]
        self.dtype = value["dtype"] if isinstance(value, dict) else str(np.asarray(value).dtype)
        self.tokenizer, self.length = None, None

    def param(self, name: str, layer: int | None) -> np.ndarray:
        """As `Source.param`; reads the whole array."""
        leaf = self._leaves[name, layer]
        return t5x.read_leaf(self._folder, self._found, "/".join(leaf.path), leaf.shape).reshape(
            leaf.param_shape
        )


def model_of(shapes: dict[str, tuple[int, ...]], model: ModelConfig) -> ModelConfig:
    """The model with the sizes of a T5X tree: `decoder/…/kernel` -> shape.

    What is missing keeps the size of `model`.
    """

    def size(name: str, axis: int, default: int) -> int:
        shape = shapes.get(f"decoder/{name}", ())
        return shape[axis] if len(shape) == 2 else default

    rows = size("token_embedder/embedding", 0, model.vocab_rows)
    if rows != model.vocab_rows:
        # The number of padding rows is not known.
        model = dataclasses.replace(model, vocab_size=rows, vocab_multiple=1)
    numbers = {name.split("/")[1] for name in shapes if name.startswith("decoder/layers_")}
    gated = "decoder/layers_0/mlp/wi_0/kernel" in shapes
    other: Literal["swiglu", "gelu"] = "swiglu" if gated else "gelu"
    H, attention = model.head_dim, "layers_0/self_attention"
    return dataclasses.replace(
        model,
        layers=len(numbers) or model.layers,
        d_model=size("token_embedder/embedding", 1, model.d_model),
        heads=max(1, size(f"{attention}/query/kernel", 1, model.heads * H) // H),
        kv_heads=max(1, size(f"{attention}/key/kernel", 1, model.kv_heads * H) // H),
        d_ff=size("layers_0/mlp/wo/kernel", 0, model.d_ff),
        feed_forward=model.feed_forward if gated == model.gated else other,
        block="serial" if "decoder/layers_0/pre_mlp_layer_norm/scale" in shapes else "parallel",
        head="untied" if "decoder/logits_dense/kernel" in shapes else "tied",
    )
