"""Training with experts: metrics, selection biases, resuming, and a router that becomes NaN."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paxlike.config import ExpertsConfig, GuardConfig, MeshConfig
from paxlike.nn.numerics import Numerics
from paxlike.parallel.host_batches import local_rows, to_devices
from paxlike.parallel.mesh import make_mesh
from paxlike.training.guard import Guard, Spike
from paxlike.training.loop import train
from paxlike.training.state import make_state
from paxlike.training.step import DeviceBatch, Program

pytestmark = pytest.mark.slow

BIAS_STEP = 0.01


@pytest.fixture
def with_experts(config):
    experts = ExpertsConfig(4, 2, 32, 1, "sigmoid", bias_step=BIAS_STEP)
    pattern = ("serial", "serial_experts")
    model = dataclasses.replace(config.model, layers=3, pattern=pattern, experts=experts)
    guard = GuardConfig(skip_nonfinite=True)
    log = dataclasses.replace(config.log, every=1, tensorboard=True)
    return dataclasses.replace(config, model=model, guard=guard, log=log)


@pytest.fixture
def program(with_experts):
    """(train step, initial state, batch) on an active mesh."""
    with jax.set_mesh(make_mesh(with_experts.mesh)):
        numerics = Numerics.of(with_experts.model, with_experts.precision, "cpu")
        made = Program.of(with_experts, numerics)
        state = make_state(with_experts, numerics, made.optimizer)
        tokens = np.random.default_rng(0).integers(0, 300, (8, 33)).astype(np.int32)
        rows = local_rows(8, 1)
        arrays = (to_devices(x[rows], rows, 8, 1) for x in (tokens[:, :-1], tokens[:, 1:]))
        yield made.train_step, state, DeviceBatch(*arrays, None)


def test_a_step_moves_biases_and_reports_the_load(program):
    """By `bias_step`, up or down, and not by the optimizer, which has no moments of them."""
    step, state, batch = program
    name = "selection_bias_E"
    moments = state.optimizer["moments"]["blocks_1"]
    assert moments[name] == {} and moments["wrouter_DE"]
    state, first = step(state, batch)
    bias_LE = jax.device_get(state.params["blocks_1"][name])
    assert bias_LE.shape == (1, 4) and bias_LE.any()
    assert set(np.round(bias_LE / BIAS_STEP, 4).flat) <= {-1, 0, 1}
    state, second = step(state, batch)
    for metrics in (first, second):
        assert 1 <= float(metrics["expert_load"]) == float(metrics["expert_load/0"]) <= 4
        assert 0 < float(metrics["router_entropy"]) <= np.log(4) + 1e-6
        assert float(metrics["dropped_choices"]) == 0
        assert float(metrics["balance_loss"]) > 0.9 and float(metrics["router_z_loss"]) > 0
    assert "expert_load/1" not in first, "one of three layers has experts"


def test_biases_move_against_the_load(program):
    """Experts that are chosen by every token go down, the others up."""
    step, state, batch = program
    preferred = np.array([[5, 0, 5, 0]], np.float32)
    state.params["blocks_1"]["selection_bias_E"] = jax.device_put(
        preferred, state.params["blocks_1"]["selection_bias_E"].sharding
    )
    state, metrics = step(state, batch)
    moved = jax.device_get(state.params["blocks_1"]["selection_bias_E"]) - preferred
    np.testing.assert_allclose(moved, BIAS_STEP * np.array([[-1, 1, -1, 1]]), atol=1e-6)
    assert float(metrics["expert_load"]) == 2


def test_a_router_that_becomes_nan_is_caught(program):
    step, state, batch = program
    router = state.params["blocks_1"]["wrouter_DE"]
    state.params["blocks_1"]["wrouter_DE"] = router + jnp.nan
    before = jax.device_get(state.params["blocks_1"]["selection_bias_E"])
    state, metrics = step(state, batch)
    assert np.isnan(metrics["loss"]) and metrics["skipped"] == 1
    after = jax.device_get(state.params["blocks_1"]["selection_bias_E"])
    np.testing.assert_array_equal(after, before)
    with pytest.raises(Spike, match="the loss is nan"):
        Guard(GuardConfig()).check(1, float(metrics["loss"]), float(metrics["gradient_norm"]))


def test_a_run_resumes_on_another_number_of_expert_shards(with_experts, tmp_path):
    """The same losses on 1, then 2, then 1 expert shards as on 1 throughout."""

    def run(name, *stops):
        for steps, mesh in stops:
            schedule = dataclasses.replace(with_experts.train, steps=steps)
            train(dataclasses.replace(with_experts, train=schedule, mesh=mesh), tmp_path / name)
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line and "event" not in line]

    one, two = MeshConfig(data=4, model=2), MeshConfig(data=2, model=2, expert=2)
    moved = run("moved", (2, one), (4, two), (6, one))
    assert moved == pytest.approx(run("whole", (6, one)), rel=1e-5)


def test_a_resumed_run_is_bitwise_the_same(with_experts, tmp_path):
    check_resuming(with_experts, tmp_path)


def test_a_resumed_run_with_expert_heads_is_bitwise_the_same(with_experts, tmp_path):
    """Metrics have both routers of the second layer, of which each takes every choice."""
    pattern = ("serial", "serial_expert_heads")
    experts = ExpertsConfig(4, 2, 32, output_bias=True)
    model = dataclasses.replace(with_experts.model, pattern=pattern, experts=experts)
    lines = check_resuming(dataclasses.replace(with_experts, model=model), tmp_path)
    for line in lines:
        loads = line["expert_load/0"], line["heads_expert_load/0"]
        assert 1 <= min(loads) and line["expert_load"] == max(loads) <= 4
        assert 0 < line["heads_router_entropy/0"] <= np.log(4) + 1e-6
        assert line["dropped_choices"] == 0 and "heads_expert_load/1" not in line


def check_resuming(with_experts, tmp_path):
    """Returns the lines of metrics of train steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def run(name, *stops):
        for steps in stops:
            schedule = dataclasses.replace(with_experts.train, steps=steps)
            result = train(dataclasses.replace(with_experts, train=schedule), tmp_path / name)
        return jax.device_get(result.state), result.evaluation

    (whole, evaluation), (resumed, again) = run("whole", 4), run("resumed", 2, 4)
    assert evaluation == again
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    read = map(json.loads, (tmp_path / "whole/metrics.jsonl").read_text().splitlines())
    lines = [line for line in read if "loss" in line and "event" not in line]
    assert lines and all("expert_load/0" in line for line in lines)
    events = EventAccumulator(str(tmp_path / "whole" / "tensorboard"))
    events.Reload()
    tags = {"expert_load", "router_entropy/0", "balance_loss", "dropped_choices"}
    assert tags <= set(events.Tags()["scalars"])
    return lines
