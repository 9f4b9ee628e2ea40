"""Schedules against their formulas in float64, at the first step, the joints, the end and beyond."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paxlike.config import ConfigError, OptimConfig
from paxlike.optim.schedules import make_schedule

STEPS, WARMUP, PEAK, FINAL = 50, 10, 3e-3, 0.1


def expected(name: str, k: int) -> float:
    """The rate of step k, counted from 1."""
    if name == "palm":
        return PEAK if k <= WARMUP else PEAK * math.sqrt(WARMUP / k)
    if k < WARMUP:
        return PEAK * k / WARMUP
    done = min(1.0, (k - WARMUP) / (STEPS - WARMUP))
    fraction = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[name]
    return PEAK * (FINAL + (1 - FINAL) * fraction)


@pytest.mark.parametrize("name", ["palm", "constant", "linear", "cosine"])
def test_follows_its_formula(name):
    schedule = make_schedule(optim(name), STEPS)
    updates = np.arange(STEPS + 5)
    rates = jax.jit(jax.vmap(schedule))(jnp.asarray(updates, jnp.int32))
    assert rates.dtype == jnp.float32
    np.testing.assert_allclose(rates, [expected(name, int(u) + 1) for u in updates], rtol=2e-6)
    np.testing.assert_allclose(float(schedule(WARMUP + 3)), expected(name, WARMUP + 4), rtol=2e-6)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_without_warm_up_the_first_step_has_nearly_the_peak(name):
    assert float(make_schedule(optim(name, warmup_steps=0), 1000)(0)) == pytest.approx(PEAK, rel=1e-3)


def test_palm_has_the_papers_rates():
    """1e-2 for 10,000 steps, then 1 / sqrt(k): arXiv 2204.02311, section 5."""
    schedule = make_schedule(OptimConfig(), 255_000)
    for k, rate in {1: 1e-2, 10_000: 1e-2, 10_001: 10_001**-0.5, 40_000: 5e-3, 255_000: 255_000**-0.5}.items():
        assert float(schedule(k - 1)) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_warm_up_as_long_as_the_run_is_refused(name):
    with pytest.raises(ConfigError, match=r"warmup_steps 50 .* train\.steps is 50"):
        make_schedule(optim(name, warmup_steps=STEPS), STEPS)
    make_schedule(optim("constant", warmup_steps=STEPS), STEPS)


def optim(name: str, warmup_steps: int = WARMUP) -> OptimConfig:
    return OptimConfig(schedule=name, learning_rate=PEAK, warmup_steps=warmup_steps, final_fraction=FINAL)
