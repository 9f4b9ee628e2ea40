"""Blocks and the stack: which branches, around which norms, in which repeating pattern.

    parallel            x + attention(norm(x)) + feed_forward(norm(x))   (PaLM, section 2)
    parallel_two_norms  the same, with a norm for each branch            (GPT-NeoX)
    serial              x = x + attention(norm(x)); x + feed_forward(norm(x))

A stack repeats a pattern of blocks (`model.pattern`; one block for PaLM). Its parameters are
stacked by position in the pattern and scanned by period: `blocks/wq_DNH` [L, D, N, H] with one
block, `blocks_0/…` and `blocks_1/…` [L/2, …] with two. Imports no JAX.
"""

import dataclasses
from collections.abc import Iterator

from paxlike.architecture.attention import Attention
from paxlike.architecture.branch import (
    Activation,
    ActivationSizes,
    Branch,
    Product,
    WeightSpec,
)
from paxlike.architecture.feed_forward import FeedForward
from paxlike.architecture.remat_policies import BLOCK_INPUT, STREAM
from paxlike.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Block:
    """Branches around norms."""

    kind: str
    """`parallel`, `parallel_two_norms` or `serial`."""
    branches: tuple[Branch, ...]

    def norm_names(self, model: ModelConfig) -> tuple[str, ...]:
        """The scale in front of each branch; a parallel block has one for all of them.

        Quantized projections have a norm without a scale inside of them (BitNet's SubLN).
        """
        if model.quant.active:
            return ()
        others = [f"{branch.name}_scale_D" for branch in self.branches[1:]]
        return ("scale_D", *(() if self.kind == "parallel" else others))

    def weights(self, model: ModelConfig) -> tuple[WeightSpec, ...]:
        branches = (spec for branch in self.branches for spec in branch.weights(model))
        norms = (spec for name in self.norm_names(model) for spec in norm_weights(model, name))
        return (*branches, *norms)

    def products(self, model: ModelConfig, sequence_length: int) -> tuple[Product, ...]:
        found = []
        for branch in self.branches:
            *inner, last = branch.products(model, sequence_length)
            followed_by_norm = self.kind == "serial" and branch is not self.branches[-1]
            found += [*inner, last._replace(needed=followed_by_norm)]
        return tuple(found)

    def activations(self, model: ModelConfig, sizes: ActivationSizes) -> tuple[Activation, ...]:
        b, stream = sizes.bytes, model.d_model // sizes.model_shards
        serial = self.kind == "serial"
        # A norm works in float32 and keeps three steps of it; its output has the compute dtype.
        count = 1 if self.kind == "parallel" else len(self.branches)
        norms = count * stream * (b if sizes.fused else 3 * 4 + b)
        return (
            Activation("block input", b * stream, BLOCK_INPUT),
            Activation("norms", norms, None),
            Activation("stream inside the block", b * stream * serial, STREAM),
            *(a for branch in self.branches for a in branch.activations(model, sizes)),
        )


def norm_bias(scale: str) -> str:
    """The name of the bias of a norm, from that of its scale."""
    return scale.replace("scale_D", "norm_bias_D")


def norm_weights(model: ModelConfig, scale: str) -> tuple[WeightSpec, ...]:
    """The scale of a norm, and its bias if it has one."""
    bias = (WeightSpec(norm_bias(scale), "norms", "bias"),) if model.norm_bias else ()
    return (WeightSpec(scale, "norms", "scale"), *bias)


_BRANCHES = (Attention(), FeedForward())
_KINDS = ("parallel", "parallel_two_norms", "serial")
BLOCKS = {kind: Block(kind, _BRANCHES) for kind in _KINDS}
"""Every kind of block by its name in the config."""


def pattern(model: ModelConfig) -> tuple[Block, ...]:
    """The blocks of one period, in order."""
    return tuple(BLOCKS[kind] for kind in model.block_kinds)


def groups(model: ModelConfig) -> Iterator[tuple[str, Block, int]]:
    """(name of the parameters' group, block, layers of this kind) by position in the pattern."""
    blocks = pattern(model)
    for index, block in enumerate(blocks):
        name = "blocks" if len(blocks) == 1 else f"blocks_{index}"
        yield name, block, model.layers // len(blocks)


def outer_weights(model: ModelConfig) -> tuple[WeightSpec, ...]:
    """The weights outside of the blocks, in the order of initialization."""
    head = (WeightSpec("head_DV", "head"),) if model.head == "untied" else ()
    return (
        WeightSpec("embedding_VD", "embedding", "embedding"),
        *head,
        *norm_weights(model, "scale_D"),
    )
