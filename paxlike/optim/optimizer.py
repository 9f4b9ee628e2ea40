"""Optimizers by name. Only this module and `schedules.py` import optax.

Parameters are a nested dict of arrays. Arrays under a stack of blocks have a leading layer axis,
which exists only so that layers run in a loop: every per-parameter statistic (RMS, factored
moments, update clipping) is computed per layer, so stacked and unstacked models get the same
updates.

Optimizer state is created sharded. Each array has the shape of its parameter, that shape without
one axis, or no axes; `jax.jit(optimizer.init)` under an explicit mesh gives it the parameter's
sharding, without that axis. All optimizers use the same layout: plain dicts of arrays. Moments are
stored and computed in float32, because with beta2 near 1 they change by less than bfloat16
resolves.
"""

import re
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from optax import apply_updates
from optax.tree_utils import tree_norm as global_norm

from paxlike.architecture.experts import SELECTION_BIAS
from paxlike.config import OptimConfig
from paxlike.optim.schedules import make_schedule, weight_decay_factor
from paxlike.parallel.axes import is_stacked

__all__ = ["Optimizer", "apply_updates", "global_norm", "make_optimizer"]

Optimizer: TypeAlias = optax.GradientTransformation
"""Two pure functions: `init(params) -> state` and
`update(gradients, state, params) -> (updates, state)`.
"""

# Hyperparameters proposed for Adafactor (arXiv 1804.04235, algorithm 6).
EPSILON1 = 1e-30  # added to the squared gradient; avoids 0/0 for a gradient that is always 0
EPSILON2 = 1e-3  # lower bound of a parameter's RMS; lets a parameter that starts at 0 change
DECAY = 0.8  # beta2 = 1 - k^-DECAY
UPDATE_CLIP = 1.0  # maximum RMS of an update before it is scaled
# Moments with an axis shorter than this are not factored: the saving is too small.
FACTOR_FROM = 128


def make_optimizer(optim: OptimConfig, steps: int) -> Optimizer:
    """Returns the optimizer for a run of `steps` updates.

    If `optim.clip` > 0, gradients are first clipped by their global norm. `optim.name` selects the
    update rule: see `_palm`, `_adafactor`, `_adamw` and `_lion`.
    """
    rule = {"palm": _palm, "adafactor": _adafactor, "adamw": _adamw, "lion": _lion}[optim.name](
        optim, steps
    )
    schedule, clip = make_schedule(optim, steps), optax.clip_by_global_norm(optim.clip)

    def init(params):
        zeros = jax.tree_util.tree_map_with_path(
            lambda path, p: {} if _is_moved(path) else rule.moments(p, _stacked(path)), params
        )
        return {"step": jnp.zeros((), jnp.int32), "moments": zeros}

    def apply(gradients, state, params):
        if optim.clip > 0:
            gradients, _ = clip.update(gradients, clip.init(params))
        rate, step = schedule(state["step"]), state["step"] + 1

        def one(path, p, g, old):
            if _is_moved(path):
                return jnp.zeros_like(p), {}
            new_p, new = rule.update(
                rate, step.astype(jnp.float32), _float32(g), old, _float32(p), path
            )
            return new_p.astype(p.dtype), new

        both = jax.tree_util.tree_map_with_path(one, params, gradients, state["moments"])
        updates, new = (jax.tree.map(lambda _, pair, i=i: pair[i], params, both) for i in (0, 1))
        return updates, {"step": step, "moments": new}

    return optax.GradientTransformation(init, apply)


class _Rule(NamedTuple):
    """The update rule for one parameter, in float32."""

    moments: Callable
    """moments(p, stacked) -> {name: zeros}."""
    update: Callable
    """update(rate, k, g, moments, p, path) -> (update, new moments).

    rate: the schedule's learning rate. k: the number of this update, from 1.
    """


def _palm(optim: OptimConfig, _: int) -> _Rule:
    """PaLM's optimizer (arXiv 2204.02311, section 5): Adafactor without factorization.

    At step k (from 1) with learning rate a:

        v = beta2 v + (1 - beta2) (g^2 + epsilon1),  beta2 = 1 - k^-0.8
        m = beta1 m + (1 - beta1) a max(RMS(p), epsilon2) g / sqrt(v)
        p = (1 - a^2) p - m

    The paper leaves these points open:
    - Momentum. The paper says both "Adafactor" and "effectively equivalent to Adam", whose momentum
      is of the gradient. Adafactor's paper omits momentum (section 4). Its published
      implementations offer momentum of the scaled update, including learning rate and RMS. This
      optimizer does the same.
    - Bias correction. beta2 is 0 at k = 1, so v needs none (Adafactor, section 7.2). Like those
      implementations, m has none either: the first update is scaled by 1 - beta1, and updates grow
      to full size within about a dozen steps.
    - Update clipping, part of Adafactor's algorithm 6, is omitted: PaLM does not list it and Adam
      has none. The gradient is clipped by its global norm.
    - Weight decay "of lr^2" applies to every parameter, including norm scales, because the paper
      lists no exceptions. It uses the schedule's rate, without the parameter's scale.
    """

    def update(rate, k, g, old, p, path):
        second = _lerp(old["second"], jnp.square(g) + EPSILON1, k**-DECAY)
        scaled = rate * _scale(p, _stacked(path)) * g * jax.lax.rsqrt(second)
        momentum = _lerp(old["momentum"], scaled, 1 - optim.beta1)
        return -momentum - rate**2 * p, {"momentum": momentum, "second": second}

    return _Rule(_two_moments, update)


def _adamw(optim: OptimConfig, steps: int) -> _Rule:
    """AdamW (arXiv 1711.05101, algorithm 2).

    Weight decay is multiplied by the schedule's rate. Norm scales and biases are not decayed.
    """
    decay = _decay(optim, steps)

    def update(rate, k, g, old, p, path):
        momentum = _lerp(old["momentum"], g, 1 - optim.beta1)
        second = _lerp(old["second"], jnp.square(g), 1 - optim.beta2)
        unbiased, unbiased_second = momentum / (1 - optim.beta1**k), second / (1 - optim.beta2**k)
        direction = unbiased / (jnp.sqrt(unbiased_second) + optim.epsilon)
        return -rate * (direction + decay(path, k) * p), {"momentum": momentum, "second": second}

    return _Rule(_two_moments, update)


def _lion(optim: OptimConfig, steps: int) -> _Rule:
    """Lion (arXiv 2302.06675, algorithm 2): sign of an interpolation; weight decay as in AdamW."""
    decay = _decay(optim, steps)

    def update(rate, k, g, old, p, path):
        sign = jnp.sign(_lerp(old["momentum"], g, 1 - optim.beta1))
        momentum = _lerp(old["momentum"], g, 1 - optim.beta2)
        return -rate * (sign + decay(path, k) * p), {"momentum": momentum}

    return _Rule(lambda p, stacked: {"momentum": _zeros(p)}, update)


def _adafactor(_: OptimConfig, __: int) -> _Rule:
    """Adafactor (arXiv 1804.04235, algorithms 4-6), without momentum or weight decay.

    The second moment of a matrix is factored into the means of its rows and of its columns: `row`
    has the parameter's shape without the column axis, `column` without the row axis. The two
    longest axes span the matrix; each index of the other axes (the heads of [D, N, H]) is a
    separate matrix with its own factors. A parameter with fewer than two axes of at least
    FACTOR_FROM keeps the full second moment. The update is clipped to an RMS of UPDATE_CLIP, then
    multiplied by the schedule's rate and the parameter's RMS.
    """

    def moments(p, stacked):
        axes = _factored_axes(p.shape, stacked)
        if axes is None:
            return {"second": _zeros(p)}
        # eval_shape gives the shape and sharding without one axis; nothing is computed.
        means = {
            name: jax.eval_shape(lambda p, axis=axis: p.mean(axis), p)
            for name, axis in axes.items()
        }
        return {"row": _zeros(means["column"]), "column": _zeros(means["row"])}

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
            direction = (
                g
                * jax.lax.rsqrt(row / row.mean(axes["row"], keepdims=True))
                * jax.lax.rsqrt(column)
            )
        direction = direction / jnp.maximum(1.0, _rms(direction, stacked) / UPDATE_CLIP)
        return -rate * _scale(p, stacked) * direction, new

    return _Rule(moments, update)


def _two_moments(p: jax.Array, stacked: bool) -> dict:
    return {"momentum": _zeros(p), "second": _zeros(p)}


def _zeros(like: jax.Array) -> jax.Array:
    """Returns float32 zeros with the shape and sharding of `like`."""
    return jnp.zeros_like(like, dtype=jnp.float32)


def _stacked(path: tuple) -> bool:
    return is_stacked(path[0].key)


def _is_moved(path: tuple) -> bool:
    """Whether the train step moves a parameter by a rule of its own: the selection bias of a
    router. It has no gradient, no moments and no weight decay."""
    return path[-1].key == SELECTION_BIAS


def _layer_axes(x: jax.Array, stacked: bool) -> tuple[int, ...]:
    return tuple(range(int(stacked), x.ndim))


def _rms(x: jax.Array, stacked: bool) -> jax.Array:
    """Returns the root mean square of each layer; reduced axes keep size 1."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=_layer_axes(x, stacked), keepdims=True))


def _scale(p: jax.Array, stacked: bool) -> jax.Array:
    """Returns Adafactor's factor of the learning rate (section 8: relative step size)."""
    return jnp.maximum(_rms(p, stacked), EPSILON2)


def _factored_axes(shape: tuple[int, ...], stacked: bool) -> dict[str, int] | None:
    """Returns a layer's two longest axes as {"row": axis, "column": axis}, with row < column.

    Returns None if the moment is not factored.
    """
    longest = sorted(range(int(stacked), len(shape)), key=lambda axis: shape[axis])[-2:]
    if len(longest) < 2 or shape[longest[0]] < FACTOR_FROM:
        return None
    return {"row": min(longest), "column": max(longest)}


def _lerp(old: jax.Array, new: jax.Array, weight: float | jax.Array) -> jax.Array:
    return old + weight * (new - old)


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _decay(optim: OptimConfig, steps: int) -> Callable:
    """Returns decay(path, k): the weight decay of a parameter at step k."""
    factor = weight_decay_factor(optim, steps)

    def decay(path: tuple, k: jax.Array) -> jax.Array | float:
        return (
            0.0
            if re.search(r"(^|_)(scale|bias)_[A-Z]+$|^b[a-z]*_[A-Z]+$", path[-1].key)
            else optim.weight_decay * factor(k)
        )

    return decay
