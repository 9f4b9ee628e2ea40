"""Optimizers by name. With `schedules.py` the only place that knows optax.

Parameters are a nested dict of arrays; those under "blocks" have a leading axis of layers. A stack of layers is only a
way to run them in a loop: every statistic of a parameter (its RMS, the axes of a factored moment, the clipping of its
update) is taken layer by layer, so a stacked model and a list of layers get the same updates.

State is born sharded: each array of it has the shape of its parameter, or that shape less one axis, or no axes, and
`jax.jit(optimizer.init)` under an explicit mesh gives it the parameter's sharding (less that axis). All optimizers keep one layout of
it, plain dicts of arrays, and keep and compute moments in float32: beta2 near 1 moves them by less than a bfloat16 can show.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import apply_updates
from optax.tree_utils import tree_norm as global_norm

from paxlike.config import OptimConfig
from paxlike.optim.schedules import make_schedule, weight_decay_factor

__all__ = ["Optimizer", "apply_updates", "global_norm", "make_optimizer"]

Optimizer = optax.GradientTransformation
"""A pair of pure functions: `init(params) -> state`, `update(gradients, state, params) -> (updates, state)`."""

# Adafactor (arXiv 1804.04235), algorithm 6: the proposed hyperparameters.
EPSILON1 = 1e-30  # added to the squared gradient, so that one that is always 0 gives 0
EPSILON2 = 1e-3  # least RMS of a parameter, so that one that starts at 0 can leave it
DECAY = 0.8  # beta2 = 1 - k^-DECAY
UPDATE_CLIP = 1.0  # greatest RMS of an update before it is scaled
# An axis shorter than this is not worth factoring: the moment is kept whole.
FACTOR_FROM = 128


def make_optimizer(optim: OptimConfig, steps: int) -> Optimizer:
    """The optimizer of a run of `steps` updates.

    With `optim.clip` > 0 gradients are clipped by their global norm first; then `palm`, `adafactor`, `adamw` or `lion` (see
    `_palm`, `_adafactor`, `_adamw`, `_lion`).
    """
    rule = {"palm": _palm, "adafactor": _adafactor, "adamw": _adamw, "lion": _lion}[optim.name](optim, steps)
    schedule, clip = make_schedule(optim, steps), optax.clip_by_global_norm(optim.clip)

    def init(params):
        zeros = jax.tree_util.tree_map_with_path(lambda path, p: rule.moments(p, _stacked(path)), params)
        return {"step": jnp.zeros((), jnp.int32), "moments": zeros}

    def apply(gradients, state, params):
        if optim.clip > 0:
            gradients, _ = clip.update(gradients, clip.init(params))
        rate, step = schedule(state["step"]), state["step"] + 1

        def one(path, p, g, old):
            new_p, new = rule.update(rate, step.astype(jnp.float32), _float32(g), old, _float32(p), path)
            return new_p.astype(p.dtype), new

        both = jax.tree_util.tree_map_with_path(one, params, gradients, state["moments"])
        updates, new = (jax.tree.map(lambda _, pair, i=i: pair[i], params, both) for i in (0, 1))
        return updates, {"step": step, "moments": new}

    return optax.GradientTransformation(init, apply)


class _Rule(NamedTuple):
    """An optimizer, one parameter at a time, in float32."""

    moments: Callable
    """moments(p, stacked) -> {name: zeros}."""
    update: Callable
    """update(rate, k, g, moments, p, path) -> (update, new moments); k counts updates from 1, rate is the schedule's."""


def _palm(optim: OptimConfig, _: int) -> _Rule:
    """PaLM's optimizer (arXiv 2204.02311, section 5): Adafactor without factorization. For step k from 1, rate a:

        v = beta2 v + (1 - beta2) (g^2 + epsilon1),  beta2 = 1 - k^-0.8
        m = beta1 m + (1 - beta1) a max(RMS(p), epsilon2) g / sqrt(v)
        p = (1 - a^2) p - m

    What the paper leaves open, and the choice here:
    - Order of the momentum. The paper says both "Adafactor" and "effectively equivalent to Adam" (whose momentum is of
      the gradient). Adafactor's paper drops momentum (section 4); its published implementations offer one, of the
      scaled update, rate and RMS included: so here.
    - Bias correction. beta2 is 0 at k = 1, so v needs none (Adafactor, section 7.2). m has none either, as in those
      implementations: the first updates are small, 1 - beta1 of the full one and growing, a warm-up of a dozen steps.
    - Update clipping, part of Adafactor's algorithm 6, is not among the settings PaLM lists, and Adam has none: left
      out. The gradient is clipped by its global norm.
    - Weight decay "of lr^2" names no exception: every parameter is decayed, norm scales too, by the schedule's rate
      without the parameter's scale.
    """

    def update(rate, k, g, old, p, path):
        second = _lerp(old["second"], jnp.square(g) + EPSILON1, k**-DECAY)
        scaled = rate * _scale(p, _stacked(path)) * g * jax.lax.rsqrt(second)
        momentum = _lerp(old["momentum"], scaled, 1 - optim.beta1)
        return -momentum - rate**2 * p, {"momentum": momentum, "second": second}

    return _Rule(_two_moments, update)


def _adamw(optim: OptimConfig, steps: int) -> _Rule:
    """AdamW (arXiv 1711.05101, algorithm 2): the decay is times the schedule's rate, and spares norm scales."""
    decay = _decay(optim, steps)

    def update(rate, k, g, old, p, path):
        momentum = _lerp(old["momentum"], g, 1 - optim.beta1)
        second = _lerp(old["second"], jnp.square(g), 1 - optim.beta2)
        unbiased, unbiased_second = momentum / (1 - optim.beta1**k), second / (1 - optim.beta2**k)
        direction = unbiased / (jnp.sqrt(unbiased_second) + optim.epsilon)
        return -rate * (direction + decay(path, k) * p), {"momentum": momentum, "second": second}

    return _Rule(_two_moments, update)


def _lion(optim: OptimConfig, steps: int) -> _Rule:
    """Lion (arXiv 2302.06675, algorithm 2): the sign of an interpolation; decay as in AdamW."""
    decay = _decay(optim, steps)

    def update(rate, k, g, old, p, path):
        sign = jnp.sign(_lerp(old["momentum"], g, 1 - optim.beta1))
        momentum = _lerp(old["momentum"], g, 1 - optim.beta2)
        return -rate * (sign + decay(path, k) * p), {"momentum": momentum}

    return _Rule(lambda p, stacked: {"momentum": _zeros(p)}, update)


def _adafactor(_: OptimConfig, __: int) -> _Rule:
    """Adafactor (arXiv 1804.04235, algorithms 4 to 6): factored second moment, no momentum, no weight decay.

    The second moment of a matrix is kept as the means of its rows and of its columns: `row` is the parameter's shape
    less the column axis, `column` less the row axis. The matrix is spanned by the two longest axes, the others (the
    heads of [D, N, H]) count matrices: each has its own factors. Parameters with fewer than two axes of at least
    FACTOR_FROM keep it whole. The update is clipped to an RMS of UPDATE_CLIP, then scaled by the schedule's rate and by
    the parameter's RMS.
    """

    def moments(p, stacked):
        axes = _factored_axes(p.shape, stacked)
        if axes is None:
            return {"second": _zeros(p)}
        # Through the type of the mean, not its value: shape and sharding less one axis, and nothing is computed.
        less = {name: jax.eval_shape(lambda p, axis=axis: p.mean(axis), p) for name, axis in axes.items()}
        return {"row": _zeros(less["column"]), "column": _zeros(less["row"])}

    def update(rate, k, g, old, p, path):
        stacked, mix = _stacked(path), k**-DECAY
        square = jnp.square(g) + EPSILON1
        axes = _factored_axes(p.shape, stacked)
        if axes is None:
            new = {"second": _lerp(old["second"], square, mix)}
            direction = g * jax.lax.rsqrt(new["second"])
        else:
            new = {
                "row": _lerp(old["row"], square.mean(axes["column"]), mix),
                "column": _lerp(old["column"], square.mean(axes["row"]), mix),
            }
            row = jnp.expand_dims(new["row"], axes["column"])
            column = jnp.expand_dims(new["column"], axes["row"])
            direction = g * jax.lax.rsqrt(row / row.mean(axes["row"], keepdims=True)) * jax.lax.rsqrt(column)
        direction = direction / jnp.maximum(1.0, _rms(direction, stacked) / UPDATE_CLIP)
        return -rate * _scale(p, stacked) * direction, new

    return _Rule(moments, update)


def _two_moments(p: jax.Array, stacked: bool) -> dict:
    return {"momentum": _zeros(p), "second": _zeros(p)}


def _zeros(like: jax.Array) -> jax.Array:
    """float32 zeros, sharded as `like`."""
    return jnp.zeros_like(like, dtype=jnp.float32)


def _stacked(path: tuple) -> bool:
    return path[0].key == "blocks"


def _layer_axes(x: jax.Array, stacked: bool) -> tuple[int, ...]:
    return tuple(range(int(stacked), x.ndim))


def _rms(x: jax.Array, stacked: bool) -> jax.Array:
    """Root mean square of each layer, axes kept at size 1."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=_layer_axes(x, stacked), keepdims=True))


def _scale(p: jax.Array, stacked: bool) -> jax.Array:
    """What Adafactor multiplies the learning rate by (section 8: relative step size)."""
    return jnp.maximum(_rms(p, stacked), EPSILON2)


def _factored_axes(shape: tuple[int, ...], stacked: bool) -> dict[str, int] | None:
    """{"row": axis, "column": axis}, the two longest of a layer in the order they stand, or None: keep it whole."""
    longest = sorted(range(int(stacked), len(shape)), key=lambda axis: shape[axis])[-2:]
    if len(longest) < 2 or shape[longest[0]] < FACTOR_FROM:
        return None
    return {"row": min(longest), "column": max(longest)}


def _lerp(old: jax.Array, new: jax.Array, weight: float | jax.Array) -> jax.Array:
    return old + weight * (new - old)


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _decay(optim: OptimConfig, steps: int) -> Callable:
    """decay(path, k): the weight decay of a parameter at step k."""
    factor = weight_decay_factor(optim, steps)

    def decay(path: tuple, k: jax.Array) -> jax.Array | float:
        return 0.0 if re.search(r"(^|_)scale_[A-Z]+$", path[-1].key) else optim.weight_decay * factor(k)

    return decay
