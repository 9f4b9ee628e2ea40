"""The cache of routed blocks: only routed tokens, in as many places as it has."""

import functools

import jax
import numpy as np
import pytest
import reference
from helpers import host_params, mesh_of, model_config, numerics_of, place, put
from interop_cases import expected_logits

from paxlike.architecture.depths import places
from paxlike.config import DepthsConfig, ModelConfig
from paxlike.infer.cache import decode, prefill
from paxlike.infer.logits import logits
from paxlike.models import depths
from paxlike.models.decoder import hidden_states

pytestmark = pytest.mark.slow

LENGTH, PROMPT = 24, 9
TOKENS = np.random.default_rng(3).integers(0, 90, LENGTH).astype(np.int32)


def cached_logits(config, params, cache_length=LENGTH):
    """(logits [LENGTH, vocabulary] from PROMPT - 1 on, the cache after all tokens)."""
    how = config.model, numerics_of(config)
    start = jax.jit(functools.partial(prefill, *how, cache_length=cache_length))
    step = jax.jit(functools.partial(decode, *how))
    cache, first = start(params, put("BT", TOKENS[None, :PROMPT]), put("B", np.array([PROMPT])))
    found = [first[0]]
    for position in range(PROMPT, LENGTH):
        inputs = put("B", TOKENS[position : position + 1]), put("B", np.array([position]))
        cache, new = step(params, cache, *inputs)
        found.append(new[0])
    return np.stack(found), cache


def routed_config(capacity, **more):
    words = {"pattern": ("serial", "parallel_routed"), "layers": 4, "kv_heads": 2, **more}
    return model_config(**words, depths=DepthsConfig(capacity, LENGTH))


def test_a_token_without_a_place_skips_the_block():
    config = routed_config(0.1)
    params = host_params(config)
    with jax.set_mesh(mesh_of()):
        found, cache = cached_logits(config, place(config, params))
    assert places(config.model, LENGTH) == 5
    assert cache["blocks_1"]["attention"]["k"].shape == (2, 1, 5, 2, 4)
    assert (np.asarray(cache["blocks_1"]["depths"]["count"]) == 5).all()
    expected = expected_logits(config, params, TOKENS, places=5)[PROMPT - 1 :]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    unlimited = expected_logits(config, params, TOKENS)[PROMPT - 1 :]
    assert np.abs(unlimited - expected).max() > 0.1


def test_with_the_indices_of_training_generation_equals_the_training_forward(monkeypatch):
    """The predictor's last weights are replaced by the indices, and its network by their table."""
    config = routed_config(0.25)
    params, chosen = host_params(config), []
    wide = jax.tree.map(np.float64, params)
    expected = reference.logits(wide, config.model, TOKENS[None], depths=chosen)[0]
    selected_LT = np.stack([selected[0] for _, selected in chosen])
    assert (selected_LT.sum(1) == LENGTH // 4).all() and (selected_LT[0] != selected_LT[1]).any()
    params["blocks_1"]["predictor_out_X"] = np.where(selected_LT, 1, -1).astype(np.float32)

    def table(w, x_BTD, context):
        return w.predictor_out_X.shard[context.positions_BT]

    monkeypatch.setattr(depths, "predictor_logits", table)
    with jax.set_mesh(mesh_of()):
        on_device = place(config, params)
        run = jax.jit(functools.partial(hidden_states, config.model, numerics_of(config)))
        trained = np.asarray(run(on_device, put("BT", TOKENS[None])))[0]
        found, cache = cached_logits(config, on_device)
        uncached = logits(config.model, numerics_of(config), on_device, TOKENS[None])[0]
    scale = config.model.logits_factor
    trained = trained @ params["embedding_VD"][: config.model.vocab_size].T * scale
    np.testing.assert_allclose(trained, expected, atol=1e-4)
    np.testing.assert_allclose(found, expected[PROMPT - 1 :], atol=1e-4)
    np.testing.assert_allclose(uncached, expected, atol=1e-4)
    assert (np.asarray(cache["blocks_1"]["depths"]["count"]) == LENGTH // 4).all()


def test_bytes_of_the_cache():
    """At capacity 1/8, routed layers have places for a quarter of the tokens."""
    model = ModelConfig(pattern=("parallel", "parallel_routed"))
    assert places(model, 2048) == 512 and places(model, 5) == 2
    assert places(ModelConfig(pattern=model.pattern, depths=DepthsConfig(0.8)), 2048) == 2048
