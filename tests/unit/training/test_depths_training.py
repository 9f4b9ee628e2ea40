"""Training with routed blocks: metrics, both evaluations, resuming, and a router that becomes
NaN."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paxlike.config import DepthsConfig, GuardConfig
from paxlike.nn.numerics import Numerics
from paxlike.parallel.host_batches import local_rows, to_devices
from paxlike.parallel.mesh import make_mesh
from paxlike.training.guard import Guard, Spike
from paxlike.training.loop import train
from paxlike.training.state import make_state
from paxlike.training.step import DeviceBatch, Program

pytestmark = pytest.mark.slow


@pytest.fixture
def routed(config):
    pattern = ("serial", "parallel_routed")
    model = dataclasses.replace(
        config.model, layers=4, pattern=pattern, depths=DepthsConfig(0.25, 16)
    )
    guard = GuardConfig(skip_nonfinite=True)
    log = dataclasses.replace(config.log, every=1)
    return dataclasses.replace(config, model=model, guard=guard, log=log)


def batch_of(accumulate):
    tokens = np.random.default_rng(0).integers(0, 300, (8, 33)).astype(np.int32)
    rows = local_rows(8, accumulate)
    arrays = (tokens[rows, :-1], tokens[rows, 1:])
    return DeviceBatch(*(to_devices(x, rows, 8, accumulate) for x in arrays), None)


@pytest.fixture
def program(routed):
    """(train step, initial state, batch) on an active mesh."""
    with jax.set_mesh(make_mesh(routed.mesh)):
        numerics = Numerics.of(routed.model, routed.precision, "cpu")
        made = Program.of(routed, numerics)
        state = make_state(routed, numerics, made.optimizer)
        yield made.train_step, state, batch_of(1)


def test_a_step_reports_the_routed_tokens_of_every_layer(program):
    step, state, batch = program
    _, metrics = step(state, batch)
    assert float(metrics["routed_tokens/0"]) == float(metrics["routed_tokens/1"]) == 0.25
    assert "routed_tokens/2" not in metrics, "two of four layers are routed"
    for name in ("routed_tokens", "predictor_tokens", "predictor_accuracy"):
        layers = [float(metrics[f"{name}/{layer}"]) for layer in (0, 1)]
        assert float(metrics[name]) == pytest.approx(np.mean(layers)) and 0 <= min(layers) <= 1
    # A part p of positive guesses agrees on at least 1 - 0.25 - p, and on at most 1 - |0.25 - p|.
    guesses, agrees = (float(metrics[f"predictor_{n}/0"]) for n in ("tokens", "accuracy"))
    assert 0.75 - guesses <= agrees <= 1 - abs(0.25 - guesses)
    assert float(metrics["predictor_loss"]) > 0


def test_metrics_are_those_of_all_accumulation_steps(routed, program):
    step, state, batch = program
    halves = dataclasses.replace(routed, train=dataclasses.replace(routed.train, accumulate=2))
    numerics = Numerics.of(routed.model, routed.precision, "cpu")
    _, expected = step(jax.tree.map(jnp.copy, state), batch)
    _, found = Program.of(halves, numerics).train_step(state, batch_of(2))
    for name, value in expected.items():
        if "predictor" in name or "routed" in name or name == "loss":
            assert float(found[name]) == pytest.approx(float(value), rel=1e-5), name


def test_a_router_that_becomes_nan_is_caught(program):
    step, state, batch = program
    router = state.params["blocks_1"]["depth_router_D"]
    state.params["blocks_1"]["depth_router_D"] = router + jnp.nan
    before = jax.device_get(state.params["embedding_VD"])
    state, metrics = step(state, batch)
    assert np.isnan(metrics["loss"]) and metrics["skipped"] == 1
    np.testing.assert_array_equal(jax.device_get(state.params["embedding_VD"]), before)
    with pytest.raises(Spike, match="the loss is nan"):
        Guard(GuardConfig()).check(1, float(metrics["loss"]), float(metrics["gradient_norm"]))


def test_a_resumed_run_is_bitwise_the_same(routed, tmp_path, capsys):
    def run(name, *stops):
        for steps in stops:
            schedule = dataclasses.replace(routed.train, steps=steps)
            result = train(dataclasses.replace(routed, train=schedule), tmp_path / name)
        return jax.device_get(result.state), result.evaluation

    (whole, evaluation), (resumed, again) = run("whole", 4), run("resumed", 2, 4)
    assert evaluation == again
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    lines = [json.loads(s) for s in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert all("routed_tokens/1" in line for line in lines if "event" not in line)
    event = next(line for line in lines if line.get("event") == "evaluation")
    assert event["loss_by_predictor"] == evaluation["loss_by_predictor"] != evaluation["loss"]
    assert "routed by the predictor: loss" in capsys.readouterr().out
