"""The mixture of attention heads against what it must equal, whatever the router does."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import reference
from helpers import (
    error,
    flat,
    host_batch,
    host_params,
    loss_and_gradients,
    mesh_of,
    model_config,
    step_gradients,
)

from paxlike.accounting.memory import memory_estimate
from paxlike.config import ExpertsConfig

pytestmark = pytest.mark.slow

WORDS = {"block": "serial_expert_heads", "norm": "rms", "kv_heads": 2}
NO_LOSSES = {"balance_loss": 0.0, "z_loss": 0.0}
HEADS = ("wq_EDNH", "wo_ENHD")


def with_experts(*fields, **changes):
    words = {**WORDS, **changes.pop("words", {})}
    return model_config(**words, experts=ExpertsConfig(*fields, **changes))


CONFIG = with_experts(4, 2, 24, output_bias=True)


@functools.cache
def gradients_on(
    config,
    sizes=(1, 1, 1),
    implementation="blocks",
    one_expert=False,
    ring=False,
    transport="gather",
):
    how = {"experts": implementation, "ring": ring, "transport": transport}
    return step_gradients(config, params_of(config, one_expert), sizes, **how)


def params_of(config, one_expert):
    """one_expert: every token prefers the last expert of heads, then the first. The stream has a
    constant entry, which no branch changes; a RMS norm keeps its sign, and the router multiplies it
    by a large weight."""
    params = host_params(config)
    if one_expert:
        params["embedding_VD"][:, 0] = 8.0
        blocks = params["blocks"]
        for name in ("wo_ENHD", "wdown_EMD", "expert_heads_bias_D", "experts_bias_D"):
            blocks[name][..., 0] = 0
        blocks["wheads_router_DE"][:, 0] = [30.0, 0.0, 0.0, 40.0]
    return params


MESHES = {
    "1x1": (1, 1, 1), "8x1": (1, 8, 1), "2x4": (1, 2, 4), "expert4": (1, 1, 1, 4),
    "2x2expert2": (1, 2, 2, 2),
}  # fmt: skip
"""pod, data, model, expert."""


@pytest.mark.parametrize("one_expert", [False, True], ids=["random", "one-expert"])
@pytest.mark.parametrize(
    ("mesh", "transport"),
    [
        *((name, "gather") for name in MESHES),
        *((name, "all_to_all") for name in MESHES if "expert" in name),
    ],
)
def test_every_mesh_and_product_gives_the_same_gradients(mesh, transport, one_expert):
    """No token is dropped, and an expert without tokens has a gradient of exactly 0."""
    how = MESHES[mesh], "blocks", one_expert, False, transport
    loss, (found, gradients) = gradients_on(CONFIG, *how)
    expected_loss, (_, expected) = gradients_on(CONFIG, (1, 1, 1), "ragged", one_expert)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    errors = {name: error(g, flat(expected)[name]) for name, g in flat(gradients).items()}
    assert max(errors.values()) < 5e-6, errors
    load = found["expert_load"]["blocks", "expert_heads"]
    assert (load.sum(-1) == 2 * 16 * 16).all()
    if one_expert:
        assert load.tolist() == [[256, 0, 0, 256]] * 2
        for name in HEADS:
            assert not gradients["blocks"][name][:, 1:3].any(), name
            assert np.linalg.norm(gradients["blocks"][name][:, 3]) > 1e-3, name


@pytest.mark.parametrize("one_expert", [False, True], ids=["random", "one-expert"])
def test_the_loss_is_that_of_all_experts_for_all_tokens(one_expert):
    """In float64, by the tests' reference."""
    params, batch = params_of(CONFIG, one_expert), host_batch(CONFIG)
    loss, _ = loss_and_gradients(CONFIG, mesh_of(), params, batch)
    routed: list[tuple[float, float]] = []
    wide = jax.tree.map(np.float64, params)
    logits = reference.logits(wide, CONFIG.model, batch.tokens, batch.segments, routed=routed)
    expected = reference.losses(logits, batch.targets, CONFIG.train.z_loss)[0]
    expected /= (batch.targets >= 0).sum()
    c = CONFIG.model.experts
    expected += sum(c.balance_loss * balance + c.z_loss * z for balance, z in routed)
    assert loss == pytest.approx(expected, rel=1e-6)


def attention_loss(params, config, wq_DNH, wo_NHD):
    """Of the model with ordinary attention, of these heads, in place of the experts of heads."""
    changes = {"block": "serial_experts", "heads": wq_DNH.shape[2]}
    names = (*HEADS, "wheads_router_DE")
    blocks = {name: array for name, array in params["blocks"].items() if name not in names}
    blocks |= {"wq_DNH": wq_DNH, "wo_NHD": wo_NHD}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
    batch = host_batch(config)
    return loss_and_gradients(config, mesh_of(), {**params, "blocks": blocks}, batch)[0]


def test_identical_experts_are_attention():
    config = with_experts(4, 2, 24, **NO_LOSSES)
    params = host_params(config)
    for name in HEADS:
        params["blocks"][name][:] = params["blocks"][name][:, :1]
    loss = loss_and_gradients(config, mesh_of(), params, host_batch(config))[0]
    own = (params["blocks"][name][:, 0] for name in HEADS)
    assert loss == pytest.approx(attention_loss(params, config, *own), rel=1e-6)


def test_all_experts_with_equal_weights_are_attention_with_all_heads():
    """k = N and a router of zeros: N experts of G heads for each key/value head are one layer of
    attention with N G of them, and a Nth of its output."""
    config = with_experts(3, 3, 16, **NO_LOSSES)
    params = host_params(config)
    blocks = params["blocks"]
    blocks["wheads_router_DE"][:] = 0
    loss = loss_and_gradients(config, mesh_of(), params, host_batch(config))[0]
    L, E, D, N, H = blocks["wq_EDNH"].shape
    K = config.model.kv_heads
    wq = blocks["wq_EDNH"].reshape(L, E, D, K, N // K, H)
    wq_DNH = np.moveaxis(wq, 1, 3).reshape(L, D, E * N, H)
    wo = blocks["wo_ENHD"].reshape(L, E, K, N // K, H, D) / E
    wo_NHD = np.moveaxis(wo, 1, 2).reshape(L, E * N, H, D)
    assert loss == pytest.approx(attention_loss(params, config, wq_DNH, wo_NHD), rel=1e-6)


def test_the_order_of_experts_does_not_matter():
    params, batch, order = host_params(CONFIG), host_batch(CONFIG), [2, 0, 3, 1]
    loss, gradients = loss_and_gradients(CONFIG, mesh_of(), params, batch)
    for name in HEADS:
        params["blocks"][name] = params["blocks"][name][:, order]
    params["blocks"]["wheads_router_DE"] = params["blocks"]["wheads_router_DE"][..., order]
    other, moved = loss_and_gradients(CONFIG, mesh_of(), params, batch)
    assert other == pytest.approx(loss, rel=1e-6)
    for name in HEADS:
        assert error(moved["blocks"][name], gradients["blocks"][name][:, order]) < 1e-5, name


@pytest.mark.parametrize("block", ["serial_expert_heads", "parallel_expert_heads"])
def test_in_ring_steps_as_on_tpus(block):
    config = with_experts(4, 2, 24, 1, output_bias=True, words={"block": block})
    expected_loss, (_, expected) = gradients_on(config)
    loss, (_, gradients) = gradients_on(config, (1, 2, 4), "ragged", ring=True)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    errors = {name: error(g, flat(expected)[name]) for name, g in flat(gradients).items()}
    assert max(errors.values()) < 5e-6, errors


@pytest.mark.parametrize("policy", ["none", "dots", "attention", "full", "palm"])
def test_rematerialization_changes_no_gradient(policy):
    expected_loss, (_, expected) = gradients_on(CONFIG, (1, 2, 4))
    config = with_experts(4, 2, 24, output_bias=True, words={"remat": policy})
    loss, (_, gradients) = gradients_on(config, (1, 2, 4))
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    errors = {name: error(g, flat(expected)[name]) for name, g in flat(gradients).items()}
    assert max(errors.values()) < 2e-6, errors


@pytest.mark.parametrize("implementation", ["blocks", "ragged"])
def test_a_flash_kernel_has_the_heads_of_all_choices(implementation):
    """Attention in blocks of queries, with k times the heads."""
    words = {"words": {"attention": "blocked"}}
    config = with_experts(4, 3, 24, **words)
    expected_loss, (_, expected) = gradients_on(with_experts(4, 3, 24))
    loss, (_, gradients) = gradients_on(config, (1, 1, 4), implementation)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    errors = {name: error(g, flat(expected)[name]) for name, g in flat(gradients).items()}
    assert max(errors.values()) < 5e-6, errors


def test_saved_activations_by_policy():
    """Bytes that a device keeps per token and layer in bfloat16: with remat full the block's input;
    with dots also the routers' float32 (logits, scores and gradient), k queries of each head, keys
    and values, and the experts' two inputs."""
    k, E, M, D, heads, kv = 3, 4, 24, 32, 8 * 4, 2 * 4

    def saved(policy):
        config = with_experts(E, k, M, words={"remat": policy})
        found = memory_estimate(config, 1)
        tokens = config.train.batch_size * config.data.sequence_length
        part = next(part.bytes for part in found.parts if part.name == "saved activations")
        return part // (tokens * config.model.layers)

    assert saved("full") == saved("palm") == 2 * D
    projections = 2 * (k * heads + 2 * kv) + 2 * 2 * k * M + 2 * 4 * 3 * E
    assert saved("dots") == 2 * D + projections
    attention = saved("attention") - saved("dots")
    assert attention == 2 * D + 2 * k * heads  # the stream between the branches, and outputs
