"""Scores, selection, the order of rows and statistics of routers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paxlike.config import ExpertsConfig
from paxlike.nn.routing import choose, statistics, to_rows, to_tokens, weights_of_rows

RANDOM = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)


def test_softmax_renormalized_is_a_softmax_over_the_chosen_logits():
    """Mixtral's and JetMoE's order of the two steps gives the weights of Qwen 3's."""
    routes = choose(jnp.asarray(RANDOM), None, ExpertsConfig(5, 3))
    best = np.sort(RANDOM, axis=-1)[:, :-4:-1]
    expected = np.exp(best) / np.exp(best).sum(-1, keepdims=True)
    np.testing.assert_allclose(routes.weights_TJ, expected, rtol=1e-6)
    np.testing.assert_array_equal(routes.experts_TJ, np.argsort(-RANDOM, axis=-1)[:, :3])


def test_of_equal_scores_the_lowest_index_is_chosen():
    routes = choose(jnp.zeros((6, 5)), None, ExpertsConfig(5, 2))
    assert routes.experts_TJ.tolist() == [[0, 1]] * 6
    assert routes.sizes_E.tolist() == [6, 6, 0, 0, 0]


def test_a_selection_bias_chooses_but_does_not_weigh():
    config = ExpertsConfig(5, 2, scores="sigmoid", scaling=2.5, bias_step=0.1)
    bias = np.array([0, 9, 0, 8, 0], np.float32)
    routes = choose(jnp.asarray(RANDOM), jnp.asarray(bias), config)
    assert routes.experts_TJ.tolist() == [[1, 3]] * 7
    scores = 1 / (1 + np.exp(-RANDOM[:, [1, 3]]))
    expected = 2.5 * scores / scores.sum(-1, keepdims=True)
    np.testing.assert_allclose(routes.weights_TJ, expected, rtol=1e-6)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_scores_that_underflow_give_no_nan(scores):
    logits = jnp.full((3, 4), -1e4).at[:, 0].set(-9e3)
    routes = choose(logits, None, ExpertsConfig(4, 2, scores=scores))
    assert np.isfinite(routes.weights_TJ).all()


def test_nan_logits_choose_existing_experts():
    """So that no row is read from elsewhere before the guard sees the loss."""
    routes = choose(jnp.full((3, 4), jnp.nan), None, ExpertsConfig(4, 2))
    assert 0 <= routes.experts_TJ.min() and routes.experts_TJ.max() < 4
    assert int(routes.sizes_E.sum()) == 6 and np.isnan(routes.weights_TJ).all()


def test_rows_are_sorted_by_expert_and_in_the_order_of_tokens():
    routes = choose(jnp.asarray(RANDOM), None, ExpertsConfig(5, 3))
    flat = np.asarray(routes.experts_TJ).reshape(-1)
    np.testing.assert_array_equal(routes.order_C, np.argsort(flat, kind="stable"))
    np.testing.assert_array_equal(routes.rows_TJ.reshape(-1)[routes.order_C], np.arange(21))
    np.testing.assert_array_equal(routes.sizes_E, np.bincount(flat, minlength=5))


def test_moving_rows_has_the_gradients_that_jax_derives():
    """Each custom gradient is that of the same function written with plain indexing."""
    routes = choose(jnp.asarray(RANDOM), None, ExpertsConfig(5, 3))
    random = np.random.default_rng(1)
    x, y, w = (random.standard_normal(s).astype(np.float32) for s in ((7, 4), (21, 4), (7, 3)))
    order, rows = routes.order_C, routes.rows_TJ
    pairs = [
        (lambda x: to_rows(x, routes), lambda x: x[order // 3], x),
        (lambda y: to_tokens(y, routes), lambda y: y[rows].sum(1), y),
        (
            lambda w: weights_of_rows(routes._replace(weights_TJ=w)),
            lambda w: w.reshape(-1)[order],
            w,
        ),
    ]
    for ours, plain, argument in pairs:
        (found, pullback), (expected, plain_pullback) = (
            jax.vjp(function, jnp.asarray(argument)) for function in (ours, plain)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        cotangent = jnp.asarray(random.standard_normal(expected.shape).astype(np.float32))
        np.testing.assert_allclose(
            pullback(cotangent)[0], plain_pullback(cotangent)[0], rtol=1e-5, atol=1e-6
        )


def test_a_sum_over_choices_is_in_float32():
    """256 + 1 + 1 is 256 in bfloat16, one addition at a time."""
    routes = choose(jnp.zeros((1, 3)), None, ExpertsConfig(3, 3))
    y_CD = jnp.array([[256.0], [1.0], [1.0]], jnp.bfloat16)
    assert float(to_tokens(y_CD, routes)[0, 0]) == 258


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_statistics_of_zero_logits(scores):
    """z is (ln N)^2 and the entropy ln N, for each token."""
    config = ExpertsConfig(5, 2, scores=scores)
    logits = jnp.zeros((7, 5))
    routes = choose(logits, None, config)
    found = statistics(logits, routes, routes, config)
    assert int(found["rows"]) == 7 * 2
    assert float(found["z"]) / 7 == pytest.approx(np.log(5) ** 2)
    assert float(found["entropy"]) / 7 == pytest.approx(np.log(5))
    np.testing.assert_allclose(found["probability_E"], np.full(5, 7 / 5), rtol=1e-6)
