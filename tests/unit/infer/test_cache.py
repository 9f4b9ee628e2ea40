"""The cached forward pass equals the uncached one at every position, for all models and meshes."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from paxlike.config import DepthsConfig, ExpertsConfig
from paxlike.infer.cache import decode, prefill

WORDS = {
    "multi-query": {},
    "grouped": {"kv_heads": 2},
    "multi-head": {"kv_heads": 8},
    "biases-and-qk-norm": {"kv_heads": 2, "attention_bias": "qkvo", "qk_norm": "head"},
    "pattern": {"kv_heads": 4, "pattern": ("parallel", "serial"), "layers": 4},
    "neox": {
        "block": "parallel_two_norms",
        "norm_bias": True,
        "feed_forward": "gelu_exact",
        "feed_forward_bias": True,
        "attention_bias": "qkvo",
        "rope_fraction": 0.5,
        "head": "untied",
        "kv_heads": 8,
    },
    "gemma": {
        "pattern": ("serial_local", "serial"),
        "layers": 3,
        "sliding_window": 5,
        "norm": "rms",
        "norm_placement": "both",
        "norm_offset": True,
        "qk_norm": "head",
        "query_scale": 0.3,
        "attention_softcap": 2.0,
        "logit_softcap": 3.0,
        "embedding_scale": 1.5,
        "local_rope_theta": 100.0,
        "kv_heads": 2,
    },
    "learned-positions": {
        "block": "parallel_local",
        "sliding_window": 32,
        "learned_positions": 32,
        "qk_norm": "heads",
        "kv_heads": 8,
    },
    "experts": {
        "kv_heads": 2,
        "pattern": ("serial", "serial_experts"),
        "norm": "rms",
        "experts": ExpertsConfig(4, 2, 32, 1, "sigmoid", bias_step=0.1),
    },
    "depths": {
        "kv_heads": 2,
        "pattern": ("parallel", "serial_routed"),
        "layers": 5,
        "depths": DepthsConfig(0.5, 16),
    },
    "expert-heads": {
        "kv_heads": 2,
        "pattern": ("serial_expert_heads", "serial"),
        "norm": "rms",
        "experts": ExpertsConfig(4, 2, 32, output_bias=True),
    },
    "serial": {
        "kv_heads": 2,
        "block": "serial",
        "norm": "rms",
        "head": "untied",
        "feed_forward": "relu2",
    },
}
LENGTH, PROMPT = 24, 16


def some_tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 250, (4, LENGTH)).astype(np.int32)


CASES = [
    ("multi-query", (1, 2, 4), None),
    ("multi-head", (1, 2, 4), "model"),
    ("grouped", (2, 2, 2), "model"),
    ("serial", (1, 1, 1), "model"),
    ("biases-and-qk-norm", (1, 2, 4), None),
    ("pattern", (1, 2, 4), "model"),
    ("neox", (1, 2, 4), "model"),
    ("gemma", (2, 2, 2), "model"),
    ("learned-positions", (1, 2, 4), "model"),
    ("serial", (1, 2, 4), None),
    ("experts", (1, 2, 4), None),
    ("experts", (1, 2, 2, 2), "model"),
    ("depths", (1, 2, 4), None),
    ("depths", (2, 2, 2), "model"),
    ("expert-heads", (1, 2, 4), None),
    ("expert-heads", (2, 2, 2), "model"),
    ("expert-heads", (1, 2, 2, 2), "model"),
]


@pytest.mark.parametrize(("words", "sizes", "kv_axis"), CASES)
@pytest.mark.slow
def test_logits_equal_the_uncached_forward_at_every_position(
    words, sizes, kv_axis, on_mesh, make, put
):
    with on_mesh(*sizes):
        model = make(**WORDS[words])
        cache = check_every_position(model, put)
    for path, array in jax.tree.leaves_with_path(cache):
        if "count" in jax.tree_util.keystr(path):  # some tokens are routed, and some are not
            assert array.shape == (2, 4) and (array > 2).all() and (array < LENGTH - 2).all()
            continue
        local = "local_attention" in jax.tree_util.keystr(path)
        places = min(LENGTH, model.config.sliding_window) if local else LENGTH
        assert array.shape[1:] == (4, places, model.config.kv_heads, 16)
        rows = ("pod", "data", "expert")[: len(sizes) - 1]
        assert array.sharding.spec == P(None, rows, None, kv_axis, None)


def check_every_position(model, put):
    tokens_BT = some_tokens()
    expected = model.logits(tokens_BT)
    spread = expected.std()

    def check(logits, lengths):
        # float32 and float64 sums over D = 64 in different orders differ by a few last-place units.
        np.testing.assert_allclose(
            np.asarray(logits), expected[range(4), lengths - 1], rtol=0, atol=2e-5 * spread
        )

    start = jax.jit(functools.partial(prefill, model.config, model.numerics, cache_length=LENGTH))
    step = jax.jit(functools.partial(decode, model.config, model.numerics), donate_argnums=1)
    lengths = np.array([1, 5, 9, PROMPT], np.int32)
    cache, logits = start(model.params, put("BT", tokens_BT[:, :PROMPT]), put("B", lengths))
    check(logits, lengths)
    for _ in range(LENGTH - PROMPT):
        cache, logits = step(
            model.params, cache, put("B", tokens_BT[range(4), lengths]), put("B", lengths)
        )
        lengths = lengths + 1
        check(logits, lengths)
    assert step._cache_size() == 1
    return cache


def test_padding_of_a_prompt_has_no_effect(one_device, make, put):
    model = make()
    start = jax.jit(
        functools.partial(prefill, model.config, model.numerics, cache_length=LENGTH + 8)
    )
    step = jax.jit(functools.partial(decode, model.config, model.numerics))
    lengths = np.array([1, 5, 9, PROMPT], np.int32)
    results = []
    for padding in (0, 7):
        tokens_BT = np.where(np.arange(LENGTH) < lengths[:, None], some_tokens(), padding).astype(
            np.int32
        )
        cache, first = start(model.params, put("BT", tokens_BT), put("B", lengths))
        _, second = step(model.params, cache, put("B", tokens_BT[:, 0]), put("B", lengths))
        results.append((np.asarray(first), np.asarray(second)))
    np.testing.assert_array_equal(results[0], results[1])
