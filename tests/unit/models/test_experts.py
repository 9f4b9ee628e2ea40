"""The mixture of experts against what it must equal, whatever the router does."""

import dataclasses
import functools

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
    place,
    step_gradients,
)

from paxlike.accounting.hlo_collectives import list_collectives
from paxlike.accounting.hlo_matmuls import count_matmuls
from paxlike.config import ExpertsConfig
from paxlike.nn import expert_transport
from paxlike.nn.routing import routes_of_part
from paxlike.training.router_losses import router_metrics
from paxlike.training.step import DeviceBatch, loss_gradients

pytestmark = pytest.mark.slow

WORDS = {"block": "serial_experts", "norm": "rms", "kv_heads": 2}
NO_LOSSES = {"balance_loss": 0.0, "z_loss": 0.0}


def with_experts(*fields, **changes):
    return model_config(**WORDS, experts=ExpertsConfig(*fields, **changes))


@functools.cache
def gradients_on(
    config, sizes=(1, 1, 1), implementation="blocks", adversarial=False, transport="gather"
):
    """adversarial: every token prefers the last expert, then the first."""
    params = host_params(config)
    if adversarial:
        params = sent_to(params, (-1, 0))
    return step_gradients(config, params, sizes, experts=implementation, transport=transport)


def sent_to(params, experts):
    """The embedding has a constant entry, which the router multiplies by a large weight.

    A RMS norm keeps its sign, and weights are positive there.
    """
    changed = jax.tree.map(np.copy, params)
    changed["embedding_VD"][:, 0] = 8.0
    blocks = changed["blocks"]
    blocks["wo_NHD"][..., 0] = 0
    blocks["wdown_EMD"][..., 0] = 0
    blocks["wrouter_DE"][:, 0] = 0
    for rank, expert in enumerate(experts):
        blocks["wrouter_DE"][:, 0, expert] = 40.0 - 10 * rank
    return changed


CONFIG = with_experts(4, 2, 24)
MESHES = {
    "1x1": (1, 1, 1), "8x1": (1, 8, 1), "2x4": (1, 2, 4), "expert2": (1, 1, 1, 2),
    "expert4": (1, 1, 1, 4), "2x2expert2": (1, 2, 2, 2), "2x1expert4": (1, 2, 1, 4),
    "pod2expert2": (2, 1, 2, 2),
}  # fmt: skip
"""pod, data, model, expert."""


@pytest.mark.parametrize("adversarial", [False, True], ids=["random", "one-expert"])
@pytest.mark.parametrize(
    ("mesh", "transport"),
    [
        *((name, "gather") for name in MESHES),
        *((name, "all_to_all") for name in MESHES if "expert" in name),
    ],
)
def test_chosen_experts_equal_all_experts(mesh, transport, adversarial):
    """Values and gradients, on every mesh, with accumulation. No token is dropped, and an expert
    without tokens has a gradient of exactly 0."""
    how = MESHES[mesh], "blocks", adversarial, transport
    loss, (found, gradients) = gradients_on(CONFIG, *how)
    one_device = (1, 1, 1), "dense", adversarial
    expected_loss, (expected_found, expected) = gradients_on(CONFIG, *one_device)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    errors = {name: error(g, flat(expected)[name]) for name, g in flat(gradients).items()}
    assert max(errors.values()) < 5e-6, errors
    np.testing.assert_array_equal(
        found["expert_load"]["blocks", "experts"],
        expected_found["expert_load"]["blocks", "experts"],
    )
    assert (found["expert_load"]["blocks", "experts"].sum(-1) == 2 * 16 * 16).all()
    assert (found["expert_rows"]["blocks", "experts"] == 2 * 16 * 16).all()
    if adversarial:
        assert found["expert_load"]["blocks", "experts"].tolist() == [[256, 0, 0, 256]] * 2
        for name in ("wgate_EDM", "wup_EDM", "wdown_EMD"):
            assert not gradients["blocks"][name][:, 1:3].any(), name
            assert np.linalg.norm(gradients["blocks"][name][:, 3]) > 1e-3, name


@functools.cache
def compiled_on(sizes, transport="gather"):
    """(collectives, FLOPs of matrix products on one device) of a step's gradients."""
    numerics = dataclasses.replace(numerics_of(CONFIG), transport=transport)
    with jax.set_mesh(mesh_of(*sizes)):
        params, batch = place(CONFIG, host_params(CONFIG)), device_batch(host_batch(CONFIG))
        parts = DeviceBatch(*(None if x is None else x[None] for x in batch))
        step = jax.jit(functools.partial(loss_gradients, CONFIG, numerics))
        text = step.lower(params, parts, jnp.float32(1)).compile().as_text()
        found = list_collectives(text, dict(jax.sharding.get_mesh().shape))
        return found, count_matmuls(text).total


@pytest.mark.parametrize("transport", ["gather", "all_to_all"])
def test_only_the_transport_communicates_over_expert_alone(transport):
    """What a device sends beside it, it sends without the axis, too: over data instead of data and
    expert. Tokens are gathered, or sent; routes, of which there are few bytes, always gathered."""
    plain, _ = compiled_on((1, 4, 2))
    found, _ = compiled_on((1, 2, 2, 2), transport)
    over = [c for c in found if c.axis == "expert"]
    others = {(c.kind, c.axis.replace("data+expert", "data")) for c in found if c.axis != "expert"}
    assert others <= {(c.kind, c.axis) for c in plain}
    tokens, D = 8 * 16 // 4, CONFIG.model.d_model
    stream = [c for c in over if c.payload >= 4 * tokens * D // 2]
    if transport == "gather":
        assert {c.kind for c in stream} == {"all-gather", "reduce-scatter"}
        assert {c.payload for c in stream} == {4 * 2 * tokens * D // 2}, "D is sharded over model"
    else:
        # The emulation of a ragged all-to-all by equal blocks.
        assert {c.kind for c in stream} == {"all-to-all"}
    assert {c.kind for c in over} <= {"all-gather", "reduce-scatter", "all-to-all", "all-reduce"}


@pytest.mark.parametrize("transport", ["gather", "all_to_all"])
def test_expert_shards_compute_as_many_flops_as_data_shards(transport):
    """By the mean rows, of buffers for the most that can come."""
    assert compiled_on((1, 2, 2, 2), transport)[1] == compiled_on((1, 4, 2))[1]


@pytest.mark.parametrize("transport", ["gather", "all_to_all"])
def test_rows_without_room_would_be_reported(monkeypatch, transport):
    """With a quarter of the room, half of the choices of two experts on two devices have a row."""

    def with_less_room(*arguments):
        routes = routes_of_part(*arguments)
        return routes._replace(order_C=routes.order_C[: routes.order_C.size // 4])

    monkeypatch.setattr(expert_transport, "routes_of_part", with_less_room)
    sizes = MESHES["expert2"]
    _, (found, _) = gradients_on.__wrapped__(CONFIG, sizes, "blocks", True, transport)
    assert (found["expert_rows"]["blocks", "experts"] == 16 * 16).all()
    metrics = router_metrics(CONFIG.model, found, jnp.float32(1), 16 * 16)
    assert float(metrics["dropped_choices"]) == 0.5


def test_losses_of_accumulation_steps_count_by_predicted_tokens():
    """Each step has its own statistics; the loss is the mean over predicted tokens."""
    loss, _ = gradients_on(CONFIG)
    params, batch = host_params(CONFIG), host_batch(CONFIG, B=16)
    total = 0.0
    for rows in (slice(8), slice(8, 16)):
        part = type(batch)(batch.tokens[rows], batch.targets[rows], None)
        mean = loss_and_gradients(CONFIG, mesh_of(), params, part)[0]
        total += mean * (part.targets >= 0).sum()
    assert loss == pytest.approx(total, rel=1e-6)


def dense_loss(params, config, gate, up, down):
    """Of the model with a feed-forward network in place of experts."""
    dense = dataclasses.replace(
        config.model, block="serial", experts=ExpertsConfig(), d_ff=gate.shape[-1]
    )
    names = ("wrouter_DE", "wgate_EDM", "wup_EDM", "wdown_EMD", "experts_scale_D")
    blocks = {name: array for name, array in params["blocks"].items() if name not in names}
    blocks |= {"wgate_DF": gate, "wup_DF": up, "wdown_FD": down}
    blocks["feed_forward_scale_D"] = params["blocks"]["experts_scale_D"]
    config = dataclasses.replace(config, model=dense)
    batch = host_batch(config)
    return loss_and_gradients(config, mesh_of(), {**params, "blocks": blocks}, batch)[0]


def test_identical_experts_are_a_feed_forward_network():
    config = with_experts(4, 2, 24, **NO_LOSSES)
    params = host_params(config)
    blocks = params["blocks"]
    for name in ("wgate_EDM", "wup_EDM", "wdown_EMD"):
        blocks[name][:] = blocks[name][:, :1]
    loss = loss_and_gradients(config, mesh_of(), params, host_batch(config))[0]
    own = (blocks[name][:, 0] for name in ("wgate_EDM", "wup_EDM", "wdown_EMD"))
    assert loss == pytest.approx(dense_loss(params, config, *own), rel=1e-6)


def test_all_experts_with_equal_weights_are_a_wide_feed_forward_network():
    """k = N and a router of zeros: the mean of N networks is one of N times their width."""
    config = with_experts(3, 3, 16, **NO_LOSSES)
    params = host_params(config)
    blocks = params["blocks"]
    blocks["wrouter_DE"][:] = 0
    loss = loss_and_gradients(config, mesh_of(), params, host_batch(config))[0]
    gate, up = (blocks[name].swapaxes(1, 2).reshape(2, 32, 48) for name in ("wgate_EDM", "wup_EDM"))
    down = blocks["wdown_EMD"].reshape(2, 48, 32) / 3
    assert loss == pytest.approx(dense_loss(params, config, gate, up, down), rel=1e-6)


def test_the_order_of_experts_does_not_matter():
    params, batch, order = host_params(CONFIG), host_batch(CONFIG), [2, 0, 3, 1]
    loss, gradients = loss_and_gradients(CONFIG, mesh_of(), params, batch)
    for name in ("wgate_EDM", "wup_EDM", "wdown_EMD"):
        params["blocks"][name] = params["blocks"][name][:, order]
    params["blocks"]["wrouter_DE"] = params["blocks"]["wrouter_DE"][..., order]
    other, moved = loss_and_gradients(CONFIG, mesh_of(), params, batch)
    assert other == pytest.approx(loss, rel=1e-6)
    for name in ("wgate_EDM", "wdown_EMD"):
        assert error(moved["blocks"][name], gradients["blocks"][name][:, order]) < 1e-5, name


def test_in_ring_steps_as_on_tpus():
    """Gathered and scattered in ring steps, with the attention of a parallel block beside it."""
    experts = ExpertsConfig(4, 2, 24, 1)
    config = model_config(block="parallel_experts", kv_heads=2, experts=experts)
    params, batch = host_params(config), host_batch(config)
    expected_loss, expected = loss_and_gradients(config, mesh_of(), params, batch)
    numerics = dataclasses.replace(numerics_of(config), ring=True, experts="ragged")
    with jax.set_mesh(mesh_of(1, 2, 4)):
        parts = DeviceBatch(*(None if x is None else x[None] for x in device_batch(batch)))
        step = jax.jit(functools.partial(loss_gradients, config, numerics))
        tokens = jnp.float32((batch.targets >= 0).sum())
        gradients, losses = jax.device_get(step(place(config, params), parts, tokens))
    assert losses.loss / tokens == pytest.approx(expected_loss, rel=1e-6)
    errors = {name: error(g, flat(expected)[name]) for name, g in flat(gradients).items()}
    assert max(errors.values()) < 5e-6, errors
