"""Weights gathered one layer ahead: same results, nothing more saved, one gather more a pass."""

import collections
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
    kept_arrays,
    loss_and_gradients,
    mesh_of,
    model_config,
    numerics_of,
    place,
    step_gradients,
    training_loss,
)

from paxlike.accounting.hlo_collectives import list_collectives
from paxlike.architecture.stack import BLOCKS
from paxlike.config import ExpertsConfig, ModelConfig
from paxlike.nn.collectives import Stored
from paxlike.nn.einsum import Kernel, einsum
from paxlike.nn.layer_loop import Ahead, run_layers

LAYERS = 3


@pytest.fixture
def with_numerics(monkeypatch):
    def change(**changes):
        numerics = numerics_of
        monkeypatch.setattr(
            "helpers.numerics_of", lambda config: dataclasses.replace(numerics(config), **changes)
        )

    return change


@pytest.mark.parametrize(
    ("sizes", "ring", "changes"),
    [
        ((1, 4, 2), True, {"kv_heads": 1, "remat": "full"}),
        ((1, 2, 4), True, {"kv_heads": 8, "remat": "dots"}),
        ((2, 2, 2), False, {"block": "serial", "remat": "attention", "head": "untied"}),
        ((1, 2, 2), True, {"pattern": ("serial", "parallel"), "layers": 5, "remat": "dots"}),
    ],
    ids=["multi-query", "own heads", "serial on pods", "two blocks and a rest"],
)
def test_loss_and_gradients_are_those_of_one_device(with_numerics, sizes, ring, changes):
    config = model_config(**{"layers": LAYERS, **changes})
    params, batch = host_params(config), host_batch(config)
    expected_loss, expected = loss_and_gradients(config, mesh_of(), params, batch)
    with_numerics(ring=ring, ahead=True)
    loss, gradients = loss_and_gradients(config, mesh_of(*sizes), params, batch, inside=True)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    errors = {name: error(g, flat(expected)[name]) for name, g in flat(gradients).items()}
    assert max(errors.values()) < 5e-6, errors


def test_statistics_of_routers_and_accumulated_gradients_are_the_same():
    """Statistics are results of the loop, too: integers, and numbers with a gradient."""
    experts = ExpertsConfig(count=4, top_k=2, d_ff=16)
    config = model_config(layers=LAYERS, block="serial_experts", experts=experts)
    params = host_params(config)
    (loss, found), (ahead_loss, ahead_found) = (
        step_gradients(config, params, (1, 2, 2), ahead=ahead) for ahead in (False, True)
    )
    assert ahead_loss == pytest.approx(loss, rel=1e-6)
    expected = flat(found[1])
    errors = {name: error(g, expected[name]) for name, g in flat(ahead_found[1]).items()}
    assert max(errors.values()) < 5e-6, errors
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5), *(found[0], ahead_found[0])
    )


# ---- what is saved and sent ----------------------------------------------------------------------

SIZES = {"pod": 1, "data": 2, "model": 4}
MODEL = {"layers": LAYERS, "d_model": 32, "d_ff": 64, "heads": 8, "kv_heads": 8, "head_dim": 8}


@pytest.mark.parametrize("remat", ["attention", "full"])
def test_no_gathered_weight_is_saved(remat):
    """Whatever the backward pass keeps of a layer, it keeps as without this loop."""
    config = model_config(**MODEL, remat=remat)

    def kept(ahead: bool) -> collections.Counter:
        numerics = dataclasses.replace(numerics_of(config), ring=True, ahead=ahead)
        with jax.set_mesh(mesh_of(data=2, model=4)):
            params = place(config, host_params(config))
            leaves = kept_arrays(config, numerics, params, device_batch(host_batch(config)))
        floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return collections.Counter(leaf.shape for leaf in floats if leaf.shape[:1] == (LAYERS,))

    assert kept(True) == kept(False)


def test_each_weight_is_gathered_once_more_than_there_are_layers(with_numerics):
    config = model_config(**MODEL, remat="full")

    def sent(ahead: bool) -> collections.Counter:
        with_numerics(ring=True, ahead=ahead)
        with jax.set_mesh(mesh_of(data=2, model=4)):
            step = jax.jit(functools.partial(training_loss, config))
            arguments = place(config, host_params(config)), device_batch(host_batch(config))
            text = step.lower(*arguments).compile().as_text()
        found = collections.Counter()
        for row in list_collectives(text, SIZES):
            found[row.axis, row.kind] += row.times * row.sent_bytes
        return found

    before, after = sent(False), sent(True)
    # Half of an up projection's, a down projection's and an output projection's shard over model.
    once = 4 * (32 * 64 + 64 * 32 + 64 * 32) // 4 // 2
    assert after - before == {("data", "all-gather"): once} and not before - after


# ---- frozen weights ------------------------------------------------------------------------------


def _layer(x_BTD, params):
    up, down_FD = params["blocks"]["up_DF"], params["blocks"]["down_FD"]
    kernel = Kernel(up.shard, (None, None), "float32", gathered=up.gathered)
    h_BTF = jnp.tanh(einsum("BTD,DF->BTF", x_BTD, kernel))
    return x_BTD + h_BTF @ down_FD, {"sum": h_BTF.sum(), "positive": (h_BTF > 0).sum()}


@pytest.mark.parametrize("trained", [("up_DF",), ("down_FD",), ("up_DF", "down_FD")])
def test_gradients_are_those_of_a_scan_and_frozen_weights_have_none(trained):
    draw = np.random.default_rng(0)
    shapes = {"up_DF": (LAYERS, 4, 6), "down_FD": (LAYERS, 6, 4)}
    stacks = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x_BTD = draw.normal(size=(2, 3, 4)).astype(np.float32)
    name = "blocks", "up_DF"
    ahead = Ahead((name,), (), {name: (None, None)}, "float32")

    def in_loop(x_BTD, params):
        return run_layers(_layer, x_BTD, {"blocks": params}, ahead)

    def in_scan(x_BTD, params):
        def body(x_BTD, params):
            stored = {**params, "up_DF": Stored(params["up_DF"])}
            return _layer(x_BTD, {"blocks": stored})

        return jax.lax.scan(body, x_BTD, params)

    def gradients(run):
        def loss(some):
            y_BTD, found = run(x_BTD, {**stacks, **some})
            weights = 1.0 + jnp.arange(LAYERS)
            return (y_BTD**2).sum() + (weights * found["sum"]).sum(), found["positive"]

        some = {name: stacks[name] for name in trained}
        return jax.jit(jax.value_and_grad(loss, has_aux=True)).trace(some)

    with jax.set_mesh(mesh_of()):
        traced = gradients(in_loop), gradients(in_scan)
        arguments = {name: stacks[name] for name in trained}
        results = [program.lower().compile()(arguments) for program in traced]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *results)
    products = [str(program.jaxpr).count("dot_general") for program in traced]
    assert products[0] == products[1]


@pytest.mark.parametrize(
    ("block", "first", "last"),
    [
        ("parallel", {"wq_DNH", "wk_DKH", "wv_DKH", "wgate_DF", "wup_DF"}, {"wo_NHD", "wdown_FD"}),
        ("serial", {"wq_DNH", "wk_DKH", "wv_DKH"}, {"wdown_FD"}),
        ("serial_experts", {"wq_DNH", "wk_DKH", "wv_DKH"}, set()),
    ],
)
def test_what_a_block_multiplies_first_in_each_pass(block, first, last):
    """An expert's weights are not gathered ahead."""
    found = BLOCKS[block]
    assert {spec.name for spec in found.first_kernels(ModelConfig())} == first
    assert {spec.name for spec in found.last_kernels(ModelConfig())} == last
