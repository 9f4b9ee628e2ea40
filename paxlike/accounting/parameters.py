"""The parameters of a model: names, shapes, counts by part."""

import dataclasses
import math

from paxlike.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Weight:
    name: str
    """The checkpoint name, which ends in the letters of its dimensions: `blocks/wq_DNH`, `embedding_VD`."""
    part: str
    shape: tuple[int, ...]
    """Of one layer, as counted: without the rows that pad the vocabulary."""
    copies: int = 1
    """Layers that have one."""
    stored_shape: tuple[int, ...] = ()
    """As stored: with those rows."""

    @property
    def count(self) -> int:
        return self.copies * math.prod(self.shape)

    @property
    def stored_count(self) -> int:
        return self.copies * math.prod(self.stored_shape or self.shape)


def weights(model: ModelConfig) -> tuple[Weight, ...]:
    """Every parameter of the decoder (PaLM, arXiv 2204.02311, section 2; no biases, norms have a scale only)."""
    D, F, N, K, H = model.d_model, model.d_ff, model.heads, model.kv_heads, model.head_dim
    made = [Weight("embedding_VD", "embedding", (model.vocab_size, D), 1, (model.vocab_rows, D))]
    if model.head == "untied":
        made.append(Weight("head_DV", "head", (D, model.vocab_size), 1, (D, model.vocab_rows)))
    in_blocks = [
        ("wq_DNH", "attention q", (D, N, H)),
        ("wk_DKH", "attention k", (D, K, H)),
        ("wv_DKH", "attention v", (D, K, H)),
        ("wo_NHD", "attention o", (N, H, D)),
        *([("wgate_DF", "feed-forward", (D, F))] if model.gated else []),
        ("wup_DF", "feed-forward", (D, F)),
        ("wdown_FD", "feed-forward", (F, D)),
        # Quantized projections have norms without a scale.
        *([("scale_D", "norms", (D,))] if not model.quant.active else []),
        *([("feed_forward_scale_D", "norms", (D,))] if model.block == "serial" and not model.quant.active else []),
    ]
    made += [Weight(f"blocks/{name}", part, shape, model.layers) for name, part, shape in in_blocks]
    return (*made, Weight("scale_D", "norms", (D,)))


def stored_shapes(model: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """(checkpoint name, shape as stored) of every parameter; those of the blocks have their layers first."""
    return [(w.name, (w.copies,) * w.name.startswith("blocks/") + (w.stored_shape or w.shape)) for w in weights(model)]


def parameter_count(model: ModelConfig) -> int:
    """Parameters of the model. The rows that pad the vocabulary are stored but not counted."""
    return sum(weight.count for weight in weights(model))


def parameters_by_part(model: ModelConfig) -> dict[str, int]:
    """Parameters of: embedding, head (where untied), attention q, k, v, o, feed-forward, norms."""
    parts: dict[str, int] = {}
    for weight in weights(model):
        parts[weight.part] = parts.get(weight.part, 0) + weight.count
    return parts


def stored_parameter_count(model: ModelConfig) -> int:
    """Parameters that take memory: with the rows that pad the vocabulary."""
    return sum(weight.stored_count for weight in weights(model))


def packed_bytes(model: ModelConfig) -> int:
    """Bytes of a quantized model's weights in a packed file (`train/packed.py`): bits in the blocks, float32 elsewhere.

    Each column of a quantized matrix ends with a whole byte. Without the scales, 4 bytes a tile, and the tokenizer.
    """
    total = 0
    for weight in weights(model):
        letters = weight.name.rpartition("_")[2]
        if weight.name.startswith("blocks/") and len(letters) > 1:
            inputs = weight.shape[0] if letters[0] == "D" else math.prod(weight.shape[:-1])
            total += weight.count // inputs * -(-inputs * model.quant.bits // 8)
        else:
            total += 4 * weight.stored_count
    return total
