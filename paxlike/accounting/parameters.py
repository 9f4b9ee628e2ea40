"""The parameters of a model: names, shapes, and counts by part."""

import dataclasses
import math

from paxlike.architecture import depths
from paxlike.architecture.branch import WeightSpec
from paxlike.architecture.stack import groups, outer_weights
from paxlike.config import ModelConfig
from paxlike.parallel.axes import is_stacked

KERNELS = ("kernel", "expert", "router")
"""Kinds of weights that are matrices (`architecture.branch.WeightSpec`)."""


@dataclasses.dataclass(frozen=True)
class Weight:
    name: str
    """Checkpoint name, ending in the letters of the dimensions: `blocks/wq_DNH`, `embedding_VD`."""
    part: str
    shape: tuple[int, ...]
    """Shape in one layer, without rows that pad the vocabulary."""
    copies: int = 1
    """Number of layers that have this weight."""
    stored_shape: tuple[int, ...] = ()
    """Stored shape in one layer, with rows that pad the vocabulary."""
    kind: str = "kernel"
    """See `architecture.branch.WeightSpec`."""
    active_shape: tuple[int, ...] = ()
    """`shape` with the experts that one token uses. Empty: `shape`."""
    share: float = 1.0
    """The part of the tokens that it multiplies: in a routed block, the capacity."""

    @property
    def count(self) -> int:
        return self.copies * math.prod(self.shape)

    @property
    def active_count(self) -> int:
        """What one token uses of it, on average."""
        return round(self.copies * math.prod(self.active_shape or self.shape) * self.share)

    @property
    def stored_count(self) -> int:
        return self.copies * math.prod(self.stored_shape or self.shape)


def weights(model: ModelConfig) -> tuple[Weight, ...]:
    """Returns the decoder's parameters in order: embedding, head, blocks, final norm."""
    embedding, *others = outer_weights(model)
    head, norm = others[:-1], others[-1]
    outer = [_weight(model, spec, "", 1) for spec in (embedding, *head)]
    blocks = [
        _weight(model, spec, f"{group}/", layers, block.routed)
        for group, block, layers in groups(model)
        for spec in block.weights(model)
    ]
    return (*outer, *blocks, _weight(model, norm, "", 1))


def _weight(
    model: ModelConfig, spec: WeightSpec, prefix: str, copies: int, routed: bool = False
) -> Weight:
    stored = spec.shape(model)
    rows = {"V": model.vocab_size}
    counted = tuple(rows.get(d, n) for d, n in zip(spec.letters, stored, strict=True))
    used = spec.active_shape(model) if spec.kind == "expert" else counted
    selected = routed and spec.kind in KERNELS and spec.part not in depths.PARTS
    share = model.depths.capacity if selected else 1.0
    return Weight(prefix + spec.name, spec.part, counted, copies, stored, spec.kind, used, share)


def stored_shapes(model: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Returns (checkpoint name, stored shape) of every parameter. In blocks, layers are the first
    axis.
    """
    return [
        (w.name, (w.copies,) * is_stacked(w.name) + (w.stored_shape or w.shape))
        for w in weights(model)
    ]


def parameter_count(model: ModelConfig) -> int:
    """Returns the number of parameters, without rows that pad the vocabulary."""
    return sum(weight.count for weight in weights(model))


def active_parameter_count(model: ModelConfig) -> int:
    """Returns the number of parameters that one token uses: of the routed experts, `top_k`; of
    routed blocks, the capacity's part."""
    return sum(weight.active_count for weight in weights(model))


def parameters_by_part(model: ModelConfig) -> dict[str, int]:
    """Returns the number of parameters by the declared part (`attention q`, `norms`, ...)."""
    parts: dict[str, int] = {}
    for weight in weights(model):
        parts[weight.part] = parts.get(weight.part, 0) + weight.count
    return parts


def stored_parameter_count(model: ModelConfig) -> int:
    """Returns the number of stored parameters, including rows that pad the vocabulary."""
    return sum(weight.stored_count for weight in weights(model))


def packed_bytes(model: ModelConfig) -> int:
    """Returns the bytes of a quantized model's weights in a packed file (`training/packed.py`).

    Kernels of the blocks are packed bits, each column padded to a whole byte; other parameters are
    float32. Excludes the scales (4 bytes per tile) and the tokenizer.
    """
    total = 0
    for weight in weights(model):
        letters = weight.name.rpartition("_")[2]
        if is_stacked(weight.name) and weight.kind == "kernel":
            inputs = weight.shape[0] if letters[0] == "D" else math.prod(weight.shape[:-1])
            total += weight.count // inputs * -(-inputs * model.quant.bits // 8)
        else:
            total += 4 * weight.stored_count
    return total
