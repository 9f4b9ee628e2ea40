"""Interventions on the residual stream at positions of the prompt (ReFT, arXiv 2404.03592).

    LoReFT  h + R^T (W h + b - R h)     (equation 2; the rows of R are orthonormal)
    DiReFT  h + W2^T (W1 h + b)         (equation 3)

Both are h + up^T (down h + b), with down = W - R or W1. So LoReFT with W = R and b = 0 leaves every
bit of h. All positions are multiplied and those without intervention masked: an update has a few
rows, and the positions differ from row to row. The stream has D sharded over `model`, so down h is
a sum over `model`, of R numbers per token: the one thing that an intervention sends in a layer.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paxlike.config import ModelConfig
from paxlike.nn import remat
from paxlike.nn.collectives import Leaf, gather, sum_gradient_over_copies, total
from paxlike.nn.einsum import Kernel, einsum
from paxlike.nn.numerics import Numerics
from paxlike.nn.prefix import document_positions
from paxlike.nn.wrapped import Wrapped
from paxlike.parallel import rules
from paxlike.parallel.mesh import axis_sizes

Array = jax.Array
NAME = "reft"
"""The name of interventions among the parameters of a group of blocks."""


class Prompts(NamedTuple):
    """Where each token is in its document, and how long the document's prompt is; int32."""

    places_BT: Array
    lengths_BT: Array


def row_prompts(B: int, T: int, lengths_B: Array | None = None) -> Prompts:
    """The prompts of rows that are each one document. None: the whole row is the prompt."""
    places_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    lengths_B = jnp.full((B,), T, jnp.int32) if lengths_B is None else lengths_B
    return Prompts(places_BT, jnp.broadcast_to(lengths_B[:, None], (B, T)))


def document_prompts(targets_BT: Array, segments_BT: Array | None) -> Prompts:
    """The prompts of a training batch. A document's prompt ends with the first token that predicts
    another (target >= 0); one without any is a prompt.
    """
    B, T = targets_BT.shape
    places_BT = jnp.broadcast_to(document_positions(T, segments_BT), (B, T))
    documents_BT = jnp.cumsum(places_BT == 0, axis=1) - 1
    rows_B1 = jnp.arange(B)[:, None]
    # Of each document: its tokens, and those up to the first that predicts.
    predicting_BT = jnp.where(targets_BT >= 0, places_BT, T) + 1
    all_BT = jnp.zeros((B, T), jnp.int32).at[rows_B1, documents_BT].max(places_BT + 1)
    first_BT = jnp.full((B, T), T + 1).at[rows_B1, documents_BT].min(predicting_BT)
    lengths_BT = jnp.minimum(all_BT, first_BT)
    return Prompts(places_BT, jnp.take_along_axis(lengths_BT, documents_BT, axis=1))


def chosen(prompts: Prompts, first: int, last: int) -> tuple[Array, Array]:
    """bool [B, T]: whether a token is among the first, and among the last, of its prompt.

    Of a prompt of n < first + last tokens, the first are at most floor(n / 2) and the last at most
    ceil(n / 2) (the paper, section 4.1); of one kind alone, at most n.
    """
    places_BT, lengths_BT = prompts
    short_BT = lengths_BT < first + last
    halves_BT = lengths_BT // 2
    first_BT = jnp.minimum(first, jnp.where(short_BT & (last > 0), halves_BT, lengths_BT))
    upper_BT = lengths_BT - halves_BT
    last_BT = jnp.minimum(last, jnp.where(short_BT & (first > 0), upper_BT, lengths_BT))
    inside_BT = places_BT < lengths_BT
    return places_BT < first_BT, inside_BT & (places_BT >= lengths_BT - last_BT)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("down", "up", "bias"),
    meta_fields=("first", "last", "tied"),
)
@dataclasses.dataclass(frozen=True)
class Interventions(Wrapped):
    """The interventions of a layer; or their PartitionSpecs or shapes.

    Untied, those of the first and of the last positions, one after the other along R.
    """

    down: Leaf
    """[R, D] of a layer."""
    up: Leaf
    """[R, D] of a layer."""
    bias: Leaf
    """[R] of a layer."""
    first: int
    """Number of the first tokens of a prompt that are changed."""
    last: int
    tied: bool

    def whole(
        self, name: str, config: ModelConfig, numerics: Numerics, summed: bool
    ) -> "Interventions":
        """With matrices gathered over `data`; D stays sharded over `model`."""

        def gathered(stack: Array) -> Array:
            shape = (*stack.shape[:-1], config.d_model)
            places = rules.weight_spec("LRD", shape, axis_sizes())
            if summed:
                stack = sum_gradient_over_copies(stack, places, numerics.gradients)
            return gather(stack, rules.gathered_axes(places[2]), 2)

        bias = self.bias
        if summed:
            bias = sum_gradient_over_copies(bias, (None, None), "float32")
        return dataclasses.replace(self, down=gathered(self.down), up=gathered(self.up), bias=bias)


def intervene(
    interventions: Interventions, x_BTD: Array, prompts: Prompts, numerics: Numerics
) -> Array:
    """The stream after a block, changed at positions of the prompts. D: this device's part."""
    i = interventions
    first_BT, last_BT = chosen(prompts, i.first, i.last)
    masks = (first_BT | last_BT,) if i.tied else (first_BT, last_BT)
    rank = i.bias.shape[-1] // len(masks)
    mask_BTR = jnp.repeat(jnp.stack(masks, axis=-1), rank, axis=-1)
    down_RD, up_RD = (Kernel(w, (None, None), numerics.gradients) for w in (i.down, i.up))
    (x_BTD,) = remat.keep(remat.STREAM, x_BTD)
    low_BTR = total(einsum("BTD,RD->BTR", x_BTD, down_RD), "model")
    low_BTR = jnp.where(mask_BTR, low_BTR + i.bias.astype(x_BTD.dtype)[None, None], 0)
    (low_BTR,) = remat.keep(remat.PROJECTION, low_BTR)
    return x_BTD + einsum("BTR,RD->BTD", low_BTR, up_RD)
