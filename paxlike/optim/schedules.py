"""Learning-rate schedules by name.

Every schedule takes the number of completed updates (0 for the first), an int or an int32 array,
inside or outside jit. The formulas below use the papers' step number k = updates + 1: the first
update is k = 1 and never has rate 0, and the last update of a run is k = steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from paxlike.config import ConfigError, OptimConfig


def make_schedule(optim: OptimConfig, steps: int) -> Callable[[int | jax.Array], jax.Array]:
    """Returns the learning rate (float32 scalar) as a function of the number of completed updates.

    palm      peak for k <= warmup_steps, then peak * sqrt(warmup_steps / k) (PaLM, arXiv
              2204.02311, section 5). With peak 1e-2 and 10,000 warm-up steps that is 1 / sqrt(k).
    constant  peak * k / warmup_steps up to k = warmup_steps, then the peak.
    linear    the same warm-up, then linear decay to final_fraction * peak at k = steps.
    cosine    the same warm-up, then half a cosine to the same value (SGDR, arXiv 1608.03983,
              eq. 5).
    two_stage the same warm-up, then linear decay towards final_fraction * peak at k = steps. After
              k = steps / 2 the peak is second_learning_rate, so the rate drops at the midpoint (The
              Era of 1-bit LLMs: training tips, code and FAQ). See also `weight_decay_factor`.
    Beyond k = steps, linear, cosine and two_stage stay at their final value.

    Raises ConfigError if linear, cosine or two_stage have no step left to decay in.
    """
    peak, warmup = optim.learning_rate, optim.warmup_steps
    if optim.schedule == "palm":
        return lambda updates: (
            jnp.float32(peak) * jnp.sqrt(warmup / jnp.maximum(warmup, updates + 1))
        )
    if optim.schedule != "constant" and warmup >= steps:
        raise ConfigError(
            f"optim.schedule {optim.schedule} has no step left to decay in: optim.warmup_steps is "
            f"{warmup} and train.steps {steps}. Reduce optim.warmup_steps, increase train.steps, "
            "or set optim.schedule to constant."
        )

    def linear():
        return optax.linear_schedule(peak, peak * optim.final_fraction, steps - warmup)

    def two_stage():
        first = linear()
        return lambda k: (
            first(k) * jnp.where(k + warmup > steps / 2, optim.second_learning_rate / peak, 1.0)
        )

    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": linear,
        "two_stage": two_stage,
        "cosine": lambda: optax.cosine_decay_schedule(peak, steps - warmup, optim.final_fraction),
    }[optim.schedule]()
    schedule = (
        optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
        if warmup
        else after
    )
    return lambda updates: jnp.asarray(schedule(updates + 1), jnp.float32)


def weight_decay_factor(optim: OptimConfig, steps: int) -> Callable[[jax.Array], jax.Array | float]:
    """Returns the factor of `optim.weight_decay` at step k (from 1).

    It is 0 in the second half of two_stage, and 1 otherwise.
    """
    if optim.schedule != "two_stage":
        return lambda k: 1.0
    return lambda k: jnp.where(k > steps / 2, 0.0, 1.0)
