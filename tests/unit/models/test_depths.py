"""Routed blocks: what is selected, what passes unchanged, and what gradients reach."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    device_batch,
    flat,
    host_batch,
    host_params,
    loss_and_gradients,
    mesh_of,
    model_config,
    numerics_of,
    place,
    put,
)

from paxlike.architecture.stack import BLOCKS
from paxlike.config import Config, ConfigError, DataConfig, DepthsConfig, QuantConfig
from paxlike.models import depths
from paxlike.models.block import Weights
from paxlike.models.branch import Context
from paxlike.models.decoder import hidden_states, sequence
from paxlike.nn.collectives import on_devices
from paxlike.nn.selection import best_places
from paxlike.training.step import losses_of, make_eval_step

pytestmark = pytest.mark.slow

B, T = 2, 16
CONFIG = model_config(
    pattern=("serial", "parallel_routed"), depths=DepthsConfig(0.25, 8), kv_heads=2
)


@functools.cache
def layer_params():
    return {name: stack[0] for name, stack in host_params(CONFIG)["blocks_1"].items()}


def layer(x_BTD, by_predictor=False):
    """The routed layer alone, as the program of a device."""
    block, model, n = BLOCKS[CONFIG.model.pattern[1]], CONFIG.model, numerics_of(CONFIG)
    positions_BT = jnp.arange(T, dtype=jnp.int32)[None]
    w = Weights(block, model, n, layer_params(), False)
    context = Context(model, n, positions_BT, by_predictor=by_predictor)
    return sequence(context, keep_cache=False)(block, w, x_BTD, {})[0]


def run_layer(x_BTD, by_predictor=False, device=layer):
    P = jax.sharding.PartitionSpec
    run = functools.partial(device, by_predictor=by_predictor)
    return on_devices(run, P(), P())(x_BTD)


def some_stream(seed=0):
    return np.random.default_rng(seed).standard_normal((B, T, 32)).astype(np.float32)


@pytest.fixture(autouse=True)
def one_device():
    layer_params()  # with its own mesh, not while a function is traced
    with jax.set_mesh(mesh_of()):
        yield


# ---- what is selected ----------------------------------------------------------------------------


def selected(scores, segments=None, capacity=0.25):
    places = best_places(jnp.asarray(scores), segments, DepthsConfig(capacity))
    return [[int(place) for place in row if place < len(scores[0])] for row in places]


def test_the_largest_scores_are_selected_in_the_order_of_the_text():
    assert selected([[0.0, 3, -1, 9, 5, 2, 1, 0], [8.0, 7, 6, 5, 4, 3, 2, 1]]) == [[3, 4], [0, 1]]


def test_of_equal_scores_the_first_is_selected():
    assert selected(np.zeros((1, 12), np.float32)) == [[0, 1, 2]]


def test_a_document_selects_as_it_does_alone():
    """A document of 3 tokens has no routed one, and leaves its slots empty."""
    scores = np.random.default_rng(0).standard_normal((1, 20)).astype(np.float32)
    segments = np.array([[0] * 3 + [1] * 9 + [2] * 8], np.int32)
    alone = [3 + place for place in selected(scores[:, 3:12])[0]]
    alone += [12 + place for place in selected(scores[:, 12:])[0]]
    assert selected(scores, segments) == [alone] and len(alone) == 2 + 2
    # The numbers of documents do not matter, nor does a number that appears again.
    assert selected(scores, np.array([5, 9, 5])[segments]) == [alone]


@pytest.mark.parametrize(("capacity", "tokens"), [(0.29, 29), (0.125, 12), (1.0, 100)])
def test_the_number_of_tokens_is_rounded_down(capacity, tokens):
    assert DepthsConfig(capacity).tokens(100) == tokens


def test_a_sequence_without_a_routed_token_is_refused():
    with pytest.raises(ConfigError, match=r"capacity 0.125 of a sequence of 7 tokens .* less than"):
        Config(
            model=dataclasses.replace(CONFIG.model, depths=DepthsConfig()),
            data=DataConfig(sequence_length=7),
        )
    with pytest.raises(ConfigError, match="capacity 0.25 of a sequence of 3 tokens"):
        selected(np.zeros((1, 3), np.float32))


# ---- what passes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parallel_routed", "parallel_two_norms_routed"])
def test_all_tokens_with_score_1_are_the_dense_block_bit_for_bit(kind, monkeypatch):
    monkeypatch.setattr(depths, "router_scores", lambda w, x_BTD: jnp.ones(x_BTD.shape[:2]))
    routed = model_config(pattern=("serial", kind), depths=DepthsConfig(1.0, 8), layers=4)
    dense = model_config(pattern=("serial", kind.removesuffix("_routed")), layers=4)
    params, batch = host_params(routed), host_batch(routed)
    names = set(flat(host_params(dense)))
    loss, gradients = loss_and_gradients(routed, mesh_of(), params, batch)
    kept = {
        group: {name: stack for name, stack in stacks.items() if f"{group}/{name}" in names}
        if isinstance(stacks, dict) else stacks
        for group, stacks in params.items()
    }  # fmt: skip
    expected_loss, expected = loss_and_gradients(dense, mesh_of(), kept, batch)
    predictor = loss - expected_loss
    assert 0.1 < predictor < 10  # its own loss is added
    hidden = [
        np.asarray(
            jax.jit(functools.partial(hidden_states, c.model, numerics_of(c)))(
                place(c, p), put("BT", batch.tokens)
            )
        )
        for c, p in ((routed, params), (dense, kept))
    ]
    np.testing.assert_array_equal(*hidden)
    for name, gradient in flat(expected).items():
        np.testing.assert_allclose(flat(gradients)[name], gradient, rtol=1e-4, atol=1e-6)


def test_other_tokens_pass_bit_for_bit():
    x_BTD = some_stream()
    y_BTD = np.asarray(jax.jit(run_layer)(x_BTD))
    changed_BT = (y_BTD != x_BTD).any(-1)
    scores_BT = x_BTD @ layer_params()["depth_router_D"]
    best_BC = np.sort(np.argsort(-scores_BT, axis=1)[:, : T // 4], axis=1)
    assert [np.flatnonzero(row).tolist() for row in changed_BT] == best_BC.tolist()


def test_other_tokens_do_not_affect_the_selected_ones():
    x_BTD = some_stream()
    before = np.asarray(jax.jit(run_layer)(x_BTD))
    moved = x_BTD.copy()
    for b in range(B):
        others = np.flatnonzero((before[b] == x_BTD[b]).all(-1))
        moved[b, others] = x_BTD[b, others[::-1]]
    after = np.asarray(jax.jit(run_layer)(moved))
    chosen_BT = (before != x_BTD).any(-1)
    np.testing.assert_array_equal(after[chosen_BT], before[chosen_BT])
    np.testing.assert_array_equal(after[~chosen_BT], moved[~chosen_BT])


def seen(by_predictor):
    """bool [T, T]: whether output t depends on input s, by gradients, in the first row."""
    weights_TD = np.random.default_rng(9).standard_normal((T, 32)).astype(np.float32)

    def jacobian(x_BTD, by_predictor):
        def outputs(x_BTD):
            return (layer(x_BTD, by_predictor)[0] * weights_TD).sum(-1)

        return jax.jacrev(outputs)(x_BTD)

    run = functools.partial(run_layer, by_predictor=by_predictor, device=jacobian)
    return (np.asarray(jax.jit(run)(some_stream()))[:, 0] != 0).any(-1)


def test_with_fixed_indices_a_token_depends_on_the_selected_ones_before_it(monkeypatch):
    chosen = [2, 3, 7, 12]
    places = np.broadcast_to(np.array(chosen, np.int32), (B, 4))
    monkeypatch.setattr(depths, "best_places", lambda *_: jnp.asarray(places))
    expected = np.eye(T, dtype=bool)
    for t in chosen:
        expected[t, [s for s in chosen if s <= t]] = True
    np.testing.assert_array_equal(seen(by_predictor=False), expected)


def test_routed_by_the_predictor_no_token_depends_on_a_later_one():
    found = seen(by_predictor=True)
    assert not np.triu(found, 1).any() and np.tril(found, -1).any()
    x_BTD = some_stream()
    later = x_BTD.copy()
    later[:, 9:] = 10 * some_stream(1)[:, 9:]
    run = jax.jit(functools.partial(run_layer, by_predictor=True))
    np.testing.assert_array_equal(np.asarray(run(x_BTD))[:, :9], np.asarray(run(later))[:, :9])
    # The router's selection does depend on them.
    by_router = jax.jit(run_layer)
    assert (np.asarray(by_router(x_BTD)) != np.asarray(by_router(later)))[:, :9].any()


def test_a_document_in_a_packed_row_is_computed_as_alone():
    """RoPE depends on distances only, up to rounding."""
    config = model_config(pattern=("serial_routed", "parallel_routed"), depths=DepthsConfig(0.3, 8))
    tokens = host_batch(config, B=1, T=18).tokens
    segments = np.array([[0] * 7 + [1] * 11], np.int32)
    params = place(config, host_params(config))
    run = jax.jit(functools.partial(hidden_states, config.model, numerics_of(config)))
    packed = np.asarray(run(params, put("BT", tokens), put("BT", segments)))
    for document in (slice(0, 7), slice(7, 18)):
        alone = np.asarray(run(params, put("BT", tokens[:, document])))
        np.testing.assert_allclose(packed[:, document], alone, rtol=0, atol=1e-4)


# ---- gradients and losses ------------------------------------------------------------------------


def test_the_predictor_has_no_effect_on_the_others():
    """Their gradients are the same bit for bit, whatever its loss weighs."""
    params, batch = host_params(CONFIG), host_batch(CONFIG)
    found = []
    for weight in (1.0, 0.0):
        depths_ = dataclasses.replace(CONFIG.model.depths, predictor_loss=weight)
        model = dataclasses.replace(CONFIG.model, depths=depths_)
        config = dataclasses.replace(CONFIG, model=model)
        found.append(flat(loss_and_gradients(config, mesh_of(), params, batch)[1]))
    for name, gradient in found[0].items():
        if "predictor" in name:
            assert gradient.any() and not found[1][name].any(), name
        else:
            np.testing.assert_array_equal(gradient, found[1][name], name)
    assert found[0]["blocks_1/depth_router_D"].any()


def test_evaluation_reports_both_ways_of_routing():
    params, batch = place(CONFIG, host_params(CONFIG)), device_batch(host_batch(CONFIG))
    step = make_eval_step(CONFIG, numerics_of(CONFIG))
    stacked = jax.tree.map(lambda x: x[None], batch)
    losses, tokens = step(params, stacked)
    for by_predictor in (False, True):
        run = jax.jit(
            lambda p, b, by=by_predictor: losses_of(CONFIG, numerics_of(CONFIG), p, b, by)
        )
        expected = float(run(params, batch).cross_entropy)
        found = losses.statistics if by_predictor else losses._asdict()
        assert float(found["cross_entropy"]) == pytest.approx(expected, rel=1e-6)
    assert abs(float(losses.cross_entropy - losses.statistics["cross_entropy"])) > 1


def test_quantized_projections_of_selected_tokens():
    """The losses are those of any mesh with the same tiles."""
    quant = QuantConfig("bitnet", groups=2)
    config = model_config(
        pattern=("serial", "parallel_routed"), quant=quant, depths=DepthsConfig(0.5, 8), kv_heads=2
    )
    params, batch = host_params(config), host_batch(config)
    loss, gradients = loss_and_gradients(config, mesh_of(), params, batch)
    assert all(np.isfinite(g).all() and g.any() for g in flat(gradients).values())
    again, _ = loss_and_gradients(config, mesh_of(data=2, model=2), params, batch)
    assert again == pytest.approx(loss, rel=1e-4)
