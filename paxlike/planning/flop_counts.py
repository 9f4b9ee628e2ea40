"""Counts a train step's FLOPs in three independent ways and compares the results.

1. The formula: arithmetic on the config (`accounting/executed_flops.py`).
2. The traced forward pass: every `dot_general` of its jaxpr (`accounting/jaxpr.py`).
3. The compiled train step: every dot in it, times the iterations of its loops, with recomputation
   (`accounting/hlo_matmuls.py`).

They share only the config. Tracing and compiling use one sequence on one device and allocate no
arrays, so a laptop can count a model of any size.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from paxlike.accounting.adapted_flops import executed, forward_of
from paxlike.accounting.executed_flops import needed_flops
from paxlike.accounting.flop_counts import FlopComparison
from paxlike.accounting.flops import Count, Term
from paxlike.accounting.hlo_matmuls import count_matmuls
from paxlike.accounting.jaxpr import count_products
from paxlike.config import Config, MeshConfig, ModelConfig
from paxlike.nn.numerics import Numerics
from paxlike.optim.optimizer import make_optimizer
from paxlike.optim.schedules import make_schedule
from paxlike.parallel.mesh import make_mesh, spec
from paxlike.training.state import abstract_state
from paxlike.training.step import DeviceBatch, losses_of, make_train_step


def count_three_ways(config: Config) -> tuple[str, tuple[FlopComparison, FlopComparison]]:
    """(the attention kernel counted, (forward pass as traced, train step as compiled))."""
    platform = jax.default_backend()
    model, attention = _runs_here(config, platform)
    one = dataclasses.replace(config.train, batch_size=1, batch_ramp=(), accumulate=1)
    config = dataclasses.replace(config, model=model, train=one)
    numerics = Numerics.of_run(config, platform)
    T = config.data.sequence_length
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        return attention, (_forward(config, numerics, T), _step(config, numerics, T))


def _runs_here(config: Config, platform: str) -> tuple[ModelConfig, str]:
    """Replaces kernels of another platform by plain matmuls, which the formula counts equally."""
    model, kernel = config.model, Numerics.of_run(config, platform).attention
    if {"splash": "tpu", "cudnn": "gpu"}.get(kernel, platform) == platform:
        return model, f"{kernel} attention"
    return dataclasses.replace(
        model, attention="reference"
    ), f"reference attention, since {kernel} does not run on {platform}"


def _forward(config: Config, numerics: Numerics, T: int) -> FlopComparison:
    batch = _batch((1, T), "BT")
    optimizer = make_optimizer(config.optim, config.train.steps)
    jaxpr = jax.make_jaxpr(lambda params, part: losses_of(config, numerics, params, part))(
        abstract_state(config, numerics, optimizer).parts, batch
    )
    products = count_products(jaxpr)
    return FlopComparison(
        "forward, traced",
        _forward_formula(config, numerics.attention),
        products.total / T,
        products.uncounted,
    )


def _forward_formula(config: Config, kernel: str) -> Count:
    """Of a model without frozen parts, a third of training without recomputation: the backward
    pass has two products for each product of the forward pass.
    """
    if config.adapt.active:
        return forward_of(config, kernel)
    needed = needed_flops(config.model, config.data.sequence_length, kernel)

    def third(formula: str) -> str:
        return re.sub(r"\d+", lambda number: str(int(number[0]) // 3), formula, count=1)

    return Count(
        "forward", tuple(Term(t.name, third(t.formula), t.flops // 3) for t in needed.terms)
    )


def _step(config: Config, numerics: Numerics, T: int) -> FlopComparison:
    optimizer = make_optimizer(config.optim, config.train.steps)
    step = make_train_step(
        config, numerics, optimizer, make_schedule(config.optim, config.train.steps)
    )
    compiled = step.lower(
        abstract_state(config, numerics, optimizer), _batch((1, 1, T), "ABT")
    ).compile()
    found = count_matmuls(compiled.as_text() or "")
    formula = executed(config, numerics.attention)
    return FlopComparison(
        "train step, compiled", formula, found.total / T, found.uncounted + found.unknown_loops
    )


def _batch(shape: tuple[int, ...], letters: str) -> DeviceBatch:
    sharding = NamedSharding(jax.sharding.get_mesh(), spec(letters, shape))
    array = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
    return DeviceBatch(array, array, None)
