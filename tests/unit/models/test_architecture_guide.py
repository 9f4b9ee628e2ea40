"""The code in docs/architecture.md works: a branch and a mesh axis that are added as it says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    device_batch,
    error,
    flat,
    host_batch,
    host_params,
    loss_and_gradients,
    mesh_of,
    model_config,
    numerics_of,
    parameters_of,
    place,
    put,
)
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.accounting.executed_flops import executed_flops
from paxlike.accounting.hlo_matmuls import count_matmuls
from paxlike.accounting.parameters import parameters_by_part, stored_parameter_count
from paxlike.architecture import stack
from paxlike.infer.cache import decode, prefill
from paxlike.models import branches
from paxlike.models.decoder import hidden_states
from paxlike.parallel import axes, rules
from paxlike.training.step import losses_of

pytestmark = pytest.mark.slow

GUIDE = Path(__file__).parents[3] / "docs" / "architecture.md"


def run_section(title: str) -> dict:
    """Executes the code of a section; returns its names."""
    section = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", GUIDE.read_text(), re.M | re.S)[1]
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", section, re.M | re.S))
    names: dict = {}
    exec(compile(code, str(GUIDE), "exec"), names)
    return names


@pytest.fixture
def running_mean(monkeypatch):
    """The branch, for one test: what the guide writes into the tables is undone."""
    monkeypatch.setitem(stack.BLOCKS, "parallel", stack.BLOCKS["parallel"])
    monkeypatch.setitem(branches.FORWARD, "running_mean", None)
    run_section("Add a branch")


def test_the_added_branch_trains_equally_on_every_mesh(running_mean):
    config = model_config(remat="attention")
    c = config.model
    params, batch = host_params(config), host_batch(config)
    assert params["blocks"]["wmean_DF"].shape == (c.layers, c.d_model, c.d_ff)
    expected_loss, expected = loss_and_gradients(config, mesh_of(), params, batch)
    assert np.linalg.norm(expected["blocks"]["wmean_DF"]) > 1e-4
    for sizes in ((1, 2, 4), (2, 2, 2)):
        loss, gradients = loss_and_gradients(config, mesh_of(*sizes), params, batch)
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        for name, gradient in flat(gradients).items():
            assert error(gradient, flat(expected)[name]) < 5e-6, name


def test_the_added_branch_generates_with_its_state(running_mean):
    config = model_config(kv_heads=2)
    c, numerics = config.model, numerics_of(config)
    tokens = host_batch(config, B=4, T=8).tokens
    lengths = np.array([1, 3, 5, 6], np.int32)
    with jax.set_mesh(mesh_of(data=2, model=4)):
        params = place(config, host_params(config))
        x_BTD = np.asarray(hidden_states(c, numerics, params, put("BT", tokens)))
        head_VD = np.asarray(params["embedding_VD"])[: c.vocab_size]
        expected = x_BTD @ head_VD.T * c.d_model**-0.5
        caches, _ = prefill(c, numerics, params, put("BT", tokens[:, :6]), put("B", lengths), 8)
        next_tokens = put("B", tokens[range(4), lengths])
        _, logits = decode(c, numerics, params, caches, next_tokens, put("B", lengths))
    np.testing.assert_allclose(logits, expected[range(4), lengths], atol=2e-5)


def test_the_added_branch_is_counted(running_mean):
    config = model_config(remat="full", layers=3)
    batch, c = host_batch(config), config.model
    with jax.set_mesh(mesh_of()):
        params, part = place(config, host_params(config)), device_batch(batch)
        step = jax.jit(jax.grad(lambda p: losses_of(config, numerics_of(config), p, part).loss))
        counted = count_matmuls(step.lower(params).compile().as_text())
    assert parameters_of(params) == stored_parameter_count(c)
    assert parameters_by_part(c)["running mean"] == 2 * c.layers * c.d_model * c.d_ff
    assert counted.total == executed_flops(config.model, 16).total * batch.tokens.size


def test_the_added_mesh_axis(monkeypatch):
    """Loss and gradient on data 2 x model 2 x zone 2 are those of one device."""
    monkeypatch.setattr(axes, "ALPHABET", dict(axes.ALPHABET))
    monkeypatch.setattr(rules, "ALPHABET", axes.ALPHABET)
    monkeypatch.setattr(rules, "WEIGHTS", dict(rules.WEIGHTS))
    monkeypatch.setattr(rules, "MESH_AXES", rules.MESH_AXES)
    guide = run_section("Add a mesh axis")
    assert rules.MESH_AXES[-1] == "zone"
    random = np.random.default_rng(0)
    w, x = (random.standard_normal(s).astype(np.float32) for s in ((4, 8, 6), (10, 8)))
    expected = jax.value_and_grad(lambda w: jnp.square(jnp.einsum("td,odf->tof", x, w)).sum())(w)
    grid = np.asarray(jax.devices()).reshape(1, 2, 2, 2)
    names = tuple(axis for axis in rules.MESH_AXES if axis != "expert")
    mesh = Mesh(grid, names, axis_types=(AxisType.Explicit,) * 4)
    with jax.set_mesh(mesh):
        placed_w = jax.device_put(w, NamedSharding(mesh, P("zone", "data", "model")))
        placed_x = jax.device_put(x, NamedSharding(mesh, P("data", None)))
        value, gradient = jax.jit(guide["zones_loss"], static_argnums=2)(placed_w, placed_x, mesh)
    assert float(value) == pytest.approx(float(expected[0]), rel=1e-6)
    assert error(gradient, expected[1]) < 1e-6
