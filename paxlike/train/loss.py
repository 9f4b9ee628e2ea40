"""Cross-entropy + z-loss over a large vocabulary, in chunks of tokens, so that the logits are never whole in memory.

    loss = sum over predicted tokens of  log Z - logit[target] + z * log^2 Z        (PaLM, arXiv 2204.02311, section 5)

The loss is the last thing a training step computes and its gradient is known as soon as its value is: a chunk's logits, loss and gradient
are computed together, once, and only the gradients of the hidden states and of the head are kept (as in Hsu et al., Liger Kernel, arXiv
2410.10989, section 3.2). Nothing is computed again in the backward pass. Without a gradient (evaluation) only the loss is computed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from paxlike.nn.einsum import gather, gather_weight, on_devices, reduce_gradient, scatter, total
from paxlike.parallel.mesh import axis_sizes, spec, weight_spec

Array = jax.Array

CHUNK_ELEMENTS = 2**27
"""Logits of a chunk on one device: 512 MiB in float32. Larger chunks touch the head's gradient less often."""


class Losses(NamedTuple):
    """Sums over the predicted tokens, float32 scalars."""

    loss: Array
    """What is minimized: cross-entropy + z-loss."""
    cross_entropy: Array
    z_loss: Array
    """z * log^2 Z."""
    correct: Array
    """Tokens whose most likely prediction is right."""


class Head(NamedTuple):
    """How logits come from hidden states; hashable, for jit."""

    letters: str
    """`VD` or `DV`."""
    scale: float
    vocab_size: int
    """Rows of the head from here on are padding: never predicted, no gradient."""
    z_loss: float
    gradients: str
    """Dtype in which the head's gradient is summed."""
    chunk_elements: int = CHUNK_ELEMENTS


def sum_losses(x_BTD: Array, head_weight: Array, targets_BT: Array, head: Head) -> Losses:
    """Sums over the tokens whose target is not -1. Gradients reach x_BTD and the head through `.loss` alone."""
    return _sum_losses(head, x_BTD, head_weight, targets_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_losses(head, x_BTD, weight, targets_BT):
    return _on_mesh(head, x_BTD, weight, targets_BT, with_gradients=False)


def _forward(head, x_BTD, weight, targets_BT):
    return _on_mesh(head, x_BTD, weight, targets_BT, with_gradients=True)


def _backward(head, gradients, cotangents):
    # In float32, as the factor is: rounded to bfloat16, 1/tokens would be off by up to 0.4 % in every gradient alike.
    dx_BTD, dweight = ((array * cotangents.loss).astype(array.dtype) for array in gradients)
    return dx_BTD, dweight, None


_sum_losses.defvjp(_forward, _backward)


def _on_mesh(head, x_BTD, weight, targets_BT, *, with_gradients):
    x_spec, targets_spec = spec("BTD", x_BTD.shape), spec("BT", targets_BT.shape)
    stored = tuple(weight_spec(head.letters, weight.shape))
    weight_spec_ = weight_spec(head.letters, weight.shape)

    def device(x, weight, targets):
        D = x_BTD.shape[-1]
        whole = gather(x, "model", 2).reshape(-1, D)
        used = gather_weight(weight, stored, x.dtype)
        losses, dx, dweight = _chunks(head, whole, used, targets.reshape(-1), with_gradients)
        losses = jax.tree.map(lambda value: total(total(value, "data"), "pod"), losses)
        if not with_gradients:
            return losses
        dx = scatter(dx.reshape(*x.shape[:2], D), "model", 2)
        return losses, (dx, reduce_gradient(dweight, stored, weight.dtype))

    scalars = Losses(*(jax.sharding.PartitionSpec(),) * len(Losses._fields))
    out_specs = (scalars, (x_spec, weight_spec_)) if with_gradients else scalars
    return on_devices(device, (x_spec, weight_spec_, targets_spec), out_specs)(x_BTD, weight, targets_BT)


def _chunks(head, x_TD, weight, targets_T, with_gradients):
    """Losses and gradients of this device's tokens and rows of the head, a chunk of tokens at a time."""
    tokens, D = x_TD.shape
    rows = weight.shape[head.letters.index("V")]
    # As few chunks as fit, of equal size: rows that only fill up the last one would cost as much as tokens.
    count = -(-tokens // min(tokens, max(1, head.chunk_elements // rows)))
    chunk = -(-tokens // count)
    padding = count * chunk - tokens
    x_TD = jnp.pad(x_TD, ((0, padding), (0, 0)))
    targets_T = jnp.pad(targets_T, (0, padding), constant_values=-1)
    step = functools.partial(_chunk, head, weight, with_gradients)
    start = (
        Losses(*(jnp.zeros((), jnp.float32),) * len(Losses._fields)),
        jnp.zeros(weight.shape if with_gradients else (), head.gradients),
    )
    inputs = (x_TD.reshape(count, chunk, D), targets_T.reshape(count, chunk))
    if count == 1:
        (losses, dweight), dx = step(start, (x_TD, targets_T))
    else:
        (losses, dweight), dx = jax.lax.scan(step, start, inputs)
    return losses, dx.reshape(-1, D)[:tokens] if with_gradients else None, dweight


def _chunk(head, weight, with_gradients, carry, chunk):
    losses, dweight = carry
    x, targets = chunk
    D, V = head.letters.index("D"), head.letters.index("V")
    rows = weight.shape[V]
    shard = jax.lax.axis_index("model") if axis_sizes()["model"] > 1 else 0
    vocabulary = shard * rows + jnp.arange(rows, dtype=jnp.int32)

    # Unscaled: the scale is above 0, so that the greatest stays the greatest, and no pass over the logits is made for it alone.
    logits = jax.lax.dot_general(x, weight, (((1,), (D,)), ((), ())), preferred_element_type=jnp.float32)
    if rows * axis_sizes()["model"] > head.vocab_size:
        logits = jnp.where((vocabulary < head.vocab_size)[None], logits, -jnp.inf)
    best = _max_over_model(jax.lax.stop_gradient(logits.max(-1)))
    exps = jnp.exp((logits - best[:, None]) * head.scale)
    sum_exps = total(exps.sum(-1), "model")
    best *= head.scale
    log_z = jnp.log(sum_exps) + best
    hit = vocabulary[None] == targets[:, None]
    place = targets - shard * rows
    mine = jnp.take_along_axis(logits, jnp.clip(place, 0, rows - 1)[:, None], 1)[:, 0] * head.scale
    target_logit = total(jnp.where((place >= 0) & (place < rows), mine, 0), "model")

    weights = (targets >= 0).astype(jnp.float32)
    cross_entropy = (log_z - target_logit) * weights
    z_loss = head.z_loss * jnp.square(log_z) * weights
    correct = (target_logit >= best) * weights
    found = Losses(cross_entropy + z_loss, cross_entropy, z_loss, correct)
    losses = jax.tree.map(lambda so_far, of_tokens: so_far + of_tokens.sum(), losses, found)
    if not with_gradients:
        return (losses, dweight), None

    probabilities = exps * (weights * (1 + 2 * head.z_loss * log_z) / sum_exps)[:, None]
    dlogits = ((probabilities - jnp.where(hit, weights[:, None], 0)) * head.scale).astype(x.dtype)
    dx = jax.lax.dot_general(dlogits, weight, (((1,), (V,)), ((), ())))
    pair = (dlogits, x) if head.letters == "VD" else (x, dlogits)
    dweight += jax.lax.dot_general(*pair, (((0,), (0,)), ((), ())), preferred_element_type=dweight.dtype)
    return (losses, dweight), dx


def _max_over_model(x):
    return x if axis_sizes()["model"] == 1 else jax.lax.pmax(x, "model")
