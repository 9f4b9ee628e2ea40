"""Learning-rate schedules by name.

Every schedule takes the number of updates already made: 0 for the first, an int or an int32 array, inside jit or not.
The formulas below are in the papers' step number k = updates + 1, so the first update is k = 1 and never has rate 0,
and the last one of a run is k = steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from paxlike.config import ConfigError, OptimConfig


def make_schedule(optim: OptimConfig, steps: int) -> Callable[[int | jax.Array], jax.Array]:
    """The learning rate (float32, no axes) as a function of the updates already made.

    palm      peak for k <= warmup_steps, then peak * sqrt(warmup_steps / k). With a peak of 1e-2 and 10,000 steps that
              is 1 / sqrt(k) (PaLM, arXiv 2204.02311, section 5).
    constant  peak * k / warmup_steps up to k = warmup_steps, then the peak.
    linear    the same warm-up, then along a straight line to final_fraction * peak at k = steps.
    cosine    the same warm-up, then along half a cosine (SGDR, arXiv 1608.03983, equation 5) to the same end.
    two_stage the same warm-up, then along a straight line towards final_fraction * peak at k = steps; after k = steps / 2 along
              that of second_learning_rate as the peak: the rate drops at half time (The Era of 1-bit LLMs: training tips, code
              and FAQ). `weight_decay_factor` is its other half.
    Beyond k = steps all but the first two stay at their end.

    Raises ConfigError where linear, cosine or two_stage have no step left to decay in.
    """
    peak, warmup = optim.learning_rate, optim.warmup_steps
    if optim.schedule == "palm":
        return lambda updates: jnp.float32(peak) * jnp.sqrt(warmup / jnp.maximum(warmup, updates + 1))
    if optim.schedule != "constant" and warmup >= steps:
        raise ConfigError(
            f"optim.schedule {optim.schedule} warms up for optim.warmup_steps {warmup} and has no step left to decay "
            f"in: train.steps is {steps}. Give fewer warmup_steps, more steps, or optim.schedule constant."
        )

    def falling():
        return optax.linear_schedule(peak, peak * optim.final_fraction, steps - warmup)

    def in_two_stages():
        first = falling()
        return lambda k: first(k) * jnp.where(k + warmup > steps / 2, optim.second_learning_rate / peak, 1.0)

    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": falling,
        "two_stage": in_two_stages,
        "cosine": lambda: optax.cosine_decay_schedule(peak, steps - warmup, optim.final_fraction),
    }[optim.schedule]()
    schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after
    return lambda updates: jnp.asarray(schedule(updates + 1), jnp.float32)


def weight_decay_factor(optim: OptimConfig, steps: int) -> Callable[[jax.Array], jax.Array | float]:
    """What `optim.weight_decay` is multiplied by at step k (from 1): 0 in the second half of two_stage, 1 elsewhere."""
    if optim.schedule != "two_stage":
        return lambda k: 1.0
    return lambda k: jnp.where(k > steps / 2, 0.0, 1.0)
