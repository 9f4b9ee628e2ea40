"""Cross-entropy and z-loss over a large vocabulary, in chunks of tokens.

    loss = sum over predicted tokens of  log Z - logit[target] + z * log^2 Z
                                                              (PaLM, arXiv 2204.02311, section 5)

Only one chunk's logits are in memory at a time. The loss is the last result of the forward pass, so
its gradient can be computed with its value: a chunk's logits, loss and gradient are computed
together, once, and only the gradients of the hidden states and of the head are kept (as in Hsu et
al., Liger Kernel, arXiv 2410.10989, section 3.2). The backward pass recomputes nothing. Evaluation
computes the loss alone. A frozen head has no gradient.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paxlike.nn.collectives import (
    Leaf,
    gather,
    gather_weight,
    greatest,
    index,
    scatter,
    scatter_gradient,
    total,
)
from paxlike.nn.differentiated import differentiated
from paxlike.parallel import rules
from paxlike.parallel.mesh import axis_sizes

Array = jax.Array

CHUNK_ELEMENTS = 2**27
"""Logits per chunk on one device: 512 MiB in float32.

Larger chunks read and write the head's gradient fewer times.
"""


class Losses(NamedTuple):
    """Sums over predicted tokens, float32 scalars; or their PartitionSpecs."""

    loss: Leaf
    """The minimized quantity: cross-entropy + z-loss."""
    cross_entropy: Leaf
    z_loss: Leaf
    """z * log^2 Z."""
    correct: Leaf
    """Number of tokens predicted correctly, by the largest logit."""
    statistics: Leaf = {}  # noqa: RUF012 - never changed in place
    """What routers are reported from (`training/router_losses.py`): nested dicts of arrays."""


class Head(NamedTuple):
    """How logits are computed from hidden states. Hashable, for custom gradients."""

    letters: str
    """`VD` or `DV`."""
    places: tuple[rules.Axis, ...]
    """Mesh axes of the stored weight's dimensions."""
    scale: float
    vocab_size: int
    """Rows of the head from this index on are padding: never predicted, no gradient."""
    z_loss: float
    gradients: str
    """Dtype in which the head's gradient is summed."""
    chunk_elements: int = CHUNK_ELEMENTS
    softcap: float = 0.0
    """Scaled logits become softcap * tanh(logits / softcap). 0: unchanged."""


def sum_losses(
    x_BTD: Array,
    head_weight: Array,
    targets_BT: Array,
    head: Head,
    zeros_VD: Array | None = None,
) -> Losses:
    """Returns sums over this device's tokens with a target other than -1.

    x_BTD and head_weight are this device's shards. The sums are equal on all devices along `model`.
    Only `.loss` is differentiable. Its gradient must be equal along `model`: that of the sum over
    `model` of the devices' equal losses.

    zeros_VD: of a tied head, from `nn/embedding.py`: they get the gradient of this device's tokens
    for all of D, in place of `head_weight`, whose gradient would be summed over `data`.
    """
    return _sum_losses(head, x_BTD, head_weight, targets_BT, zeros_VD)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_losses(head, x, weight, targets, zeros):
    return _compute(head, x, weight, targets, gradients=())


def _forward(head, x, weight, targets, zeros):
    tied = zeros is not None
    x, weight, targets = map(differentiated, (x, weight, targets))
    gradients = ("x", "weight") if weight.needs_gradient else ("x",)
    values = x.value, weight.value, targets.value
    losses, (dx, dweight) = _compute(head, *values, gradients=gradients)
    if tied or dweight is None:
        return losses, (dx, None, dweight)
    return losses, (dx, scatter_gradient(dweight, head.places, weight.value.dtype), None)


def _backward(head, gradients, cotangents):
    # The factor stays in float32: rounded to bfloat16, 1/tokens would change every gradient by up
    # to 0.4 %. The cotangent is that of one device's copy of the loss, of `model` equal copies.
    factor = cotangents.loss * axis_sizes()["model"]
    dx, dweight, dzeros = jax.tree.map(lambda x: (x * factor).astype(x.dtype), gradients)
    return dx, dweight, None, dzeros


_sum_losses.defvjp(_forward, _backward, symbolic_zeros=True)


def _compute(head, x, weight, targets, *, gradients):
    """gradients: those to compute with the losses, of `x` and `weight`."""
    whole = gather(x, "model", 2)
    used = gather_weight(weight, head.places, x.dtype)
    tokens_TD = whole.reshape(-1, whole.shape[-1])
    losses, dx, dweight = _chunks(head, tokens_TD, used, targets.reshape(-1), gradients)
    if not gradients:
        return losses
    dx = scatter(dx.reshape(whole.shape), "model", 2)
    if "weight" not in gradients:
        return losses, (dx, None)
    return losses, (dx, dweight)


def _chunks(head, x_TD, weight, targets_T, gradients):
    """Computes losses and gradients of this device's tokens and head rows, chunk by chunk."""
    tokens, D = x_TD.shape
    rows = weight.shape[head.letters.index("V")]
    # As few chunks as possible, of equal size: padding the last one would cost as much as tokens.
    count = -(-tokens // min(tokens, max(1, head.chunk_elements // rows)))
    chunk = -(-tokens // count)
    padding = count * chunk - tokens
    x_TD = jnp.pad(x_TD, ((0, padding), (0, 0)))
    targets_T = jnp.pad(targets_T, (0, padding), constant_values=-1)
    step = functools.partial(_chunk, head, weight, gradients)
    zero = jnp.zeros((), jnp.float32)
    start = (
        Losses(zero, zero, zero, zero),
        jnp.zeros(weight.shape if "weight" in gradients else (), head.gradients),
    )
    inputs = (x_TD.reshape(count, chunk, D), targets_T.reshape(count, chunk))
    if count == 1:
        (losses, dweight), dx = step(start, (x_TD, targets_T))
    else:
        (losses, dweight), dx = jax.lax.scan(step, start, inputs)
    return losses, dx.reshape(-1, D)[:tokens] if gradients else None, dweight


def _chunk(head, weight, gradients, carry, chunk):
    losses, dweight = carry
    x, targets = chunk
    D, V = head.letters.index("D"), head.letters.index("V")
    rows = weight.shape[V]
    shard = index("model")
    vocabulary = shard * rows + jnp.arange(rows, dtype=jnp.int32)

    # Not scaled yet: the scale is positive, so the maximum is at the same logit. The scale is
    # applied together with the exponential, which saves a pass over the logits.
    logits = jax.lax.dot_general(
        x, weight, (((1,), (D,)), ((), ())), preferred_element_type=jnp.float32
    )
    scale = head.scale
    if head.softcap:
        shares = jnp.tanh(logits * (head.scale / head.softcap))
        logits, scale = head.softcap * shares, 1.0
    if rows * axis_sizes()["model"] > head.vocab_size:
        logits = jnp.where((vocabulary < head.vocab_size)[None], logits, -jnp.inf)
    best = greatest(logits.max(-1), "model")
    exps = jnp.exp((logits - best[:, None]) * scale)
    sum_exps = total(exps.sum(-1), "model")
    best *= scale
    log_z = jnp.log(sum_exps) + best
    hit = vocabulary[None] == targets[:, None]
    place = targets - shard * rows
    mine = jnp.take_along_axis(logits, jnp.clip(place, 0, rows - 1)[:, None], 1)[:, 0] * scale
    target_logit = total(jnp.where((place >= 0) & (place < rows), mine, 0), "model")

    weights = (targets >= 0).astype(jnp.float32)
    cross_entropy = (log_z - target_logit) * weights
    z_loss = head.z_loss * jnp.square(log_z) * weights
    correct = (target_logit >= best) * weights
    found = Losses(cross_entropy + z_loss, cross_entropy, z_loss, correct)
    losses = jax.tree.map(lambda so_far, of_tokens: so_far + of_tokens.sum(), losses, found)
    if not gradients:
        return (losses, dweight), None

    probabilities = exps * (weights * (1 + 2 * head.z_loss * log_z) / sum_exps)[:, None]
    dlogits = (probabilities - jnp.where(hit, weights[:, None], 0)) * head.scale
    if head.softcap:
        dlogits *= 1 - jnp.square(shares)
    dlogits = dlogits.astype(x.dtype)
    dx = jax.lax.dot_general(dlogits, weight, (((1,), (V,)), ((), ())))
    if "weight" not in gradients:
        return (losses, dweight), dx
    pair = (dlogits, x) if head.letters == "VD" else (x, dlogits)
    dweight += jax.lax.dot_general(
        *pair, (((0,), (0,)), ((), ())), preferred_element_type=dweight.dtype
    )
    return (losses, dweight), dx
