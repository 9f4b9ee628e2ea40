"""Schedules compared with their formulas in float64, including the boundaries and past the end."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paxlike.config import ConfigError, OptimConfig
from paxlike.optim.optimizer import make_optimizer
from paxlike.optim.schedules import make_schedule

STEPS, WARMUP, PEAK, SECOND, FINAL = 50, 10, 3e-3, 1e-3, 0.1


def expected(name: str, k: int) -> float:
    """The rate at step k, from 1."""
    if name == "palm":
        return PEAK if k <= WARMUP else PEAK * math.sqrt(WARMUP / k)
    if k < WARMUP:
        return PEAK * k / WARMUP
    progress = min(1.0, (k - WARMUP) / (STEPS - WARMUP))
    fraction = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * progress)) / 2}.get(
        name, 1 - progress
    )
    peak = SECOND if name == "two_stage" and k > STEPS / 2 else PEAK
    return peak * (FINAL + (1 - FINAL) * fraction)


@pytest.mark.parametrize("name", ["palm", "constant", "linear", "cosine", "two_stage"])
def test_follows_its_formula(name):
    schedule = make_schedule(optim(name), STEPS)
    updates = np.arange(STEPS + 5)
    rates = jax.jit(jax.vmap(schedule))(jnp.asarray(updates, jnp.int32))
    assert rates.dtype == jnp.float32
    np.testing.assert_allclose(rates, [expected(name, int(u) + 1) for u in updates], rtol=2e-6)
    np.testing.assert_allclose(float(schedule(WARMUP + 3)), expected(name, WARMUP + 4), rtol=2e-6)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_without_warm_up_the_first_rate_is_nearly_the_peak(name):
    assert float(make_schedule(optim(name, warmup_steps=0), 1000)(0)) == pytest.approx(
        PEAK, rel=1e-3
    )


def test_palm_has_the_rates_of_the_paper():
    """1e-2 for 10,000 steps, then 1 / sqrt(k): arXiv 2204.02311, section 5."""
    schedule = make_schedule(OptimConfig(), 255_000)
    for k, rate in {
        1: 1e-2,
        10_000: 1e-2,
        10_001: 10_001**-0.5,
        40_000: 5e-3,
        255_000: 255_000**-0.5,
    }.items():
        assert float(schedule(k - 1)) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "two_stage"])
def test_a_warm_up_as_long_as_the_run_raises(name):
    with pytest.raises(ConfigError, match=r"warmup_steps is 50 and train\.steps 50"):
        make_schedule(optim(name, warmup_steps=STEPS), STEPS)
    make_schedule(optim("constant", warmup_steps=STEPS), STEPS)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_two_stage_decays_weights_only_in_the_first_half(name):
    """With zero gradients the update is the decay: rate * 0.1 * p up to step 25 of 50, then 0."""
    config = dataclasses.replace(optim("two_stage"), name=name, weight_decay=0.1, clip=0.0)
    optimizer, params = make_optimizer(config, STEPS), {"wup_DF": jnp.ones((2, 2))}
    state, schedule, changes = optimizer.init(params), make_schedule(config, STEPS), []
    for _ in range(STEPS):
        updates, state = optimizer.update({"wup_DF": jnp.zeros((2, 2))}, state, params)
        changes.append(float(updates["wup_DF"][0, 0]))
    decays = [-0.1 * float(schedule(u)) if u + 1 <= STEPS / 2 else 0.0 for u in range(STEPS)]
    np.testing.assert_allclose(changes, decays, rtol=1e-5)


def optim(name: str, warmup_steps: int = WARMUP) -> OptimConfig:
    second = SECOND if name == "two_stage" else 0.0
    return OptimConfig(
        schedule=name,
        learning_rate=PEAK,
        warmup_steps=warmup_steps,
        final_fraction=FINAL,
        second_learning_rate=second,
    )
