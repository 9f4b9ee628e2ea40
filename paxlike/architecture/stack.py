"""Blocks and the stack: which branches, around which norms, in which repeating pattern.

    parallel            x + attention(norm(x)) + feed_forward(norm(x))   (PaLM, section 2)
    parallel_two_norms  the same, with a norm for each branch            (GPT-NeoX)
    serial              x = x + attention(norm(x)); x + feed_forward(norm(x))
    …_experts           the same, with a mixture of experts for the feed-forward
    …_expert_heads      the same, with mixtures of experts for feed-forward and attention
    …_local             the same, with attention in a sliding window
    …_routed            the same, for some of the tokens (mixture of depths; in patterns only)

Serial blocks can have norms after their branches, too: x + norm(attention(norm(x))), and so on.

A stack repeats a pattern of blocks (`model.pattern`; one block for PaLM). Its parameters are
stacked by position in the pattern and scanned by period: `blocks/wq_DNH` [L, D, N, H] with one
block, `blocks_0/…` and `blocks_1/…` [L/2, …] with two. Layers of an incomplete last period come
after the scan, each in a group of its own: `blocks_rest_0/…` [1, …]. Imports no JAX.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from paxlike.architecture import depths
from paxlike.architecture.attention import Attention
from paxlike.architecture.branch import (
    Activation,
    ActivationSizes,
    Branch,
    Product,
    WeightSpec,
)
from paxlike.architecture.expert_heads import ExpertHeads
from paxlike.architecture.experts import Experts
from paxlike.architecture.feed_forward import FeedForward
from paxlike.architecture.remat_policies import BLOCK_INPUT, STREAM
from paxlike.config import ModelConfig
from paxlike.config.depths import ROUTED


@dataclasses.dataclass(frozen=True)
class Block:
    """Branches around norms."""

    kind: str
    """`parallel`, `parallel_two_norms` or `serial`."""
    branches: tuple[Branch, ...]
    routed: bool = False
    """Whether a router selects the tokens that go through it (`architecture/depths.py`)."""

    def norm_names(self, model: ModelConfig) -> tuple[str, ...]:
        """The scale in front of each branch; a parallel block has one for all of them.

        Quantized projections have a norm without a scale inside of them (BitNet's SubLN).
        """
        if model.quant.active or model.norm_placement == "after":
            return ()
        others = [f"{branch.name}_scale_D" for branch in self.branches[1:]]
        return ("scale_D", *(() if self.kind == "parallel" else others))

    def output_norm_names(self, model: ModelConfig) -> tuple[str, ...]:
        """The scale after each branch, if there is one."""
        if model.norm_placement == "before":
            return ()
        return tuple(f"{what}_output_scale_D" for what in ("attention", "feed_forward"))

    def weights(self, model: ModelConfig) -> tuple[WeightSpec, ...]:
        branches = (spec for branch in self.branches for spec in branch.weights(model))
        names = (*self.norm_names(model), *self.output_norm_names(model))
        norms = (spec for name in names for spec in norm_weights(model, name))
        return (*branches, *norms, *(depths.weights() if self.routed else ()))

    def first_kernels(self, model: ModelConfig) -> list[WeightSpec]:
        """The kernels that multiply the stream as it enters the block."""
        branches = self.branches[:1] if self.kind == "serial" else self.branches
        return [spec for spec in _kernels(model, branches) if spec.letters[0] == "D"]

    def last_kernels(self, model: ModelConfig) -> list[WeightSpec]:
        """Those whose products are added to the stream as it leaves the block."""
        branches = self.branches[-1:] if self.kind == "serial" else self.branches
        return [spec for spec in _kernels(model, branches) if spec.letters[-1] == "D"]

    def products(self, model: ModelConfig, sequence_length: int) -> tuple[Product, ...]:
        found, T = [], sequence_length
        for branch in self.branches:
            length = model.depths.tokens(T) if self.routed else T
            *inner, last = branch.products(model, length)
            followed_by_norm = self.kind == "serial" and branch is not self.branches[-1]
            followed_by_norm = followed_by_norm or model.norm_placement != "before"
            # A routed block weighs the sum of its branches, so it reads every one of them.
            needed = followed_by_norm or self.routed
            found += [*inner, last._replace(needed=needed)]
        return depths.products(model, T, tuple(found)) if self.routed else tuple(found)

    def activations(self, model: ModelConfig, sizes: ActivationSizes) -> tuple[Activation, ...]:
        if not self.routed:
            return self._activations(model, sizes)
        selected = sizes._replace(sequence_length=model.depths.tokens(sizes.sequence_length))
        return depths.activations(model, sizes, self._activations(model, selected))

    def _activations(self, model: ModelConfig, sizes: ActivationSizes) -> tuple[Activation, ...]:
        b, stream = sizes.bytes, model.d_model // sizes.model_shards
        serial = self.kind == "serial"
        # A norm works in float32 and keeps three steps of it; its output has the compute dtype.
        outputs = len(self.output_norm_names(model))
        inputs = 1 if self.kind == "parallel" else len(self.branches)
        count = outputs + (0 if model.norm_placement == "after" else inputs)
        norms = count * stream * (b if sizes.fused else 3 * 4 + b)
        return (
            Activation("block input", b * stream, BLOCK_INPUT),
            Activation("norms", norms, None),
            Activation("stream inside the block", b * stream * (outputs or serial), STREAM),
            *(a for branch in self.branches for a in branch.activations(model, sizes)),
        )

    def caches(self, model: ModelConfig) -> dict[str, dict[str, str]]:
        """Branch -> name -> letters of each array of one layer's generation cache."""
        found = {branch.name: branch.cache(model) for branch in self.branches}
        return depths.caches(found) if self.routed else found


def _kernels(model: ModelConfig, branches: tuple[Branch, ...]) -> Iterator[WeightSpec]:
    specs = (spec for branch in branches for spec in branch.weights(model))
    return (spec for spec in specs if spec.kind == "kernel")


def norm_bias(scale: str) -> str:
    """The name of the bias of a norm, from that of its scale."""
    return scale.replace("scale_D", "norm_bias_D")


def norm_weights(model: ModelConfig, scale: str) -> tuple[WeightSpec, ...]:
    """The scale of a norm, and its bias if it has one."""
    bias = (WeightSpec(norm_bias(scale), "norms", "bias"),) if model.norm_bias else ()
    return (WeightSpec(scale, "norms", "scale"), *bias)


_KINDS = ("parallel", "parallel_two_norms", "serial")
BLOCKS = {
    f"{kind}{experts}{local}": Block(
        kind, (Attention(local=bool(local)), Experts() if experts else FeedForward())
    )
    for kind in _KINDS
    for experts in ("", "_experts")
    for local in ("", "_local")
} | {f"{kind}_expert_heads": Block(kind, (ExpertHeads(), Experts())) for kind in _KINDS}
BLOCKS |= {f"{kind}{ROUTED}": dataclasses.replace(BLOCKS[kind], routed=True) for kind in _KINDS}
"""Every kind of block by its name in the config."""


class Group(NamedTuple):
    """Layers whose parameters are stacked."""

    name: str
    block: Block
    layers: int


def repeated(model: ModelConfig) -> tuple[Group, ...]:
    """The groups of the complete periods, by position in the pattern."""
    kinds = model.block_kinds
    periods = model.layers // len(kinds)
    names = ["blocks"] if len(kinds) == 1 else [f"blocks_{index}" for index in range(len(kinds))]
    return tuple(Group(n, BLOCKS[kind], periods) for n, kind in zip(names, kinds, strict=True))


def rest(model: ModelConfig) -> tuple[Group, ...]:
    """The layers of an incomplete last period, each a group."""
    kinds = model.block_kinds[: model.layers % len(model.block_kinds)]
    return tuple(Group(f"blocks_rest_{i}", BLOCKS[kind], 1) for i, kind in enumerate(kinds))


def groups(model: ModelConfig) -> tuple[Group, ...]:
    """All groups of layers."""
    return (*repeated(model), *rest(model))


def layer_places(model: ModelConfig) -> Iterator[tuple[Group, int]]:
    """(group, index in it) of every layer, in order."""
    for period in range(model.layers // len(model.block_kinds)):
        yield from ((group, period) for group in repeated(model))
    yield from ((group, 0) for group in rest(model))


def outer_weights(model: ModelConfig) -> tuple[WeightSpec, ...]:
    """The weights outside of the blocks, in the order of initialization."""
    head = (WeightSpec("head_DV", "head"),) if model.head == "untied" else ()
    positions = (WeightSpec("positions_PD", "positions", "embedding"),)
    return (
        WeightSpec("embedding_VD", "embedding", "embedding"),
        *head,
        *(positions if model.learned_positions else ()),
        *norm_weights(model, "scale_D"),
    )
