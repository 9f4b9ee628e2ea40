"""The decoder against its formulas in float64, what a position depends on, and initial values."""

import functools

import jax
import numpy as np
import pytest
import reference
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
)  # fmt: skip

from paxlike.config import ExpertsConfig, RopeScalingConfig
from paxlike.models.decoder import hidden_states, init_params

pytestmark = pytest.mark.slow

ARCHITECTURES = {
    "palm": {},
    "segments": {"segments": True},
    "grouped": {"kv_heads": 2, "norm": "rms", "feed_forward": "gelu"},
    "multi-head": {"kv_heads": 8, "feed_forward": "relu", "norm_epsilon": 0.1},
    "llama": {
        "block": "serial",
        "norm": "rms",
        "head": "untied",
        "kv_heads": 4,
        "rope_theta": 500.0,
    },
    "serial": {"block": "serial", "feed_forward": "relu2", "segments": True},
    "biases-qk-norm": {"attention_bias": "qkvo", "qk_norm": "head", "kv_heads": 2},
    "pattern": {"pattern": ("parallel", "serial"), "layers": 4, "attention_bias": "qkv"},
    "neox": {
        "block": "parallel_two_norms", "norm_bias": True, "feed_forward": "gelu_exact",
        "feed_forward_bias": True, "attention_bias": "qkvo", "rope_fraction": 0.5,
        "head": "untied", "kv_heads": 8,
    },
    "geglu": {
        "feed_forward": "geglu", "feed_forward_bias": True, "block": "serial", "norm_bias": True,
        "rope_scaling": RopeScalingConfig("yarn", 4.0, 8), "kv_heads": 2,
    },
    "gemma": {
        "pattern": ("serial_local", "serial"), "layers": 3, "sliding_window": 5, "norm": "rms",
        "norm_placement": "both", "norm_offset": True, "qk_norm": "head", "query_scale": 0.3,
        "attention_softcap": 2.0, "logit_softcap": 3.0, "embedding_scale": 1.5, "kv_heads": 2,
        "local_rope_theta": 100.0, "rope_scaling": RopeScalingConfig("linear", 4.0),
        "feed_forward": "geglu", "segments": True,
    },
    "olmo": {
        "block": "serial", "norm": "rms", "norm_placement": "after", "qk_norm": "heads",
        "kv_heads": 2, "head": "untied",
    },
    "learned-positions": {
        "block": "parallel_local", "sliding_window": 3, "learned_positions": 16, "kv_heads": 8,
        "qk_norm": "layer", "logit_scale": 0.5, "norm_bias": True, "remat": "full",
    },
    "experts": {
        "block": "serial_experts", "norm": "rms", "kv_heads": 2, "head": "untied",
        "experts": ExpertsConfig(4, 2, 24, balance_loss=0.5, z_loss=0.1),
    },
    "shared-experts": {
        "pattern": ("parallel", "parallel_two_norms_experts"), "layers": 3, "remat": "full",
        "feed_forward": "geglu",
        "experts": ExpertsConfig(
            5, 3, 16, 2, "sigmoid", scaling=2.5, balance_loss=0.5, z_loss=0.1, bias_step=0.1
        ),
    },
    "expert-heads": {
        "block": "serial_expert_heads", "norm": "rms", "heads": 4, "kv_heads": 2,
        "experts": ExpertsConfig(3, 2, 24, balance_loss=0.5, z_loss=0.1, output_bias=True),
        "segments": True,
    },
    "unnormalized-experts": {
        "block": "serial_experts_local", "sliding_window": 5, "norm": "rms",
        "norm_placement": "both",
        "experts": ExpertsConfig(3, 1, 24, renormalize=False, balance_loss=0.5, z_loss=0.1),
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=ARCHITECTURES.values(), ids=ARCHITECTURES)
def case(request):
    """(config, float32 parameters, batch, loss, gradients) on one device."""
    words = dict(request.param)
    segments = words.pop("segments", False)
    config = model_config(**words)
    params, batch = host_params(config), host_batch(config, B=2, segments=segments)
    return config, params, batch, *loss_and_gradients(config, mesh_of(), params, batch)


def reference_loss(config, params, batch):
    routed: list[tuple[float, float]] = []
    logits = reference.logits(params, config.model, batch.tokens, batch.segments, routed=routed)
    loss = reference.losses(logits, batch.targets, config.train.z_loss)[0]
    loss /= (batch.targets >= 0).sum()
    c = config.model.experts
    return loss + sum(c.balance_loss * balance + c.z_loss * z for balance, z in routed)


def test_loss_follows_the_formulas(case):
    config, params, batch, loss, _ = case
    wide = jax.tree.map(np.float64, params)
    assert loss == pytest.approx(reference_loss(config, wide, batch), rel=1e-6)


def test_every_gradient_follows_the_formulas(case):
    """The slope along a random direction of each parameter, by central differences in float64."""
    config, params, batch, _, gradients = case
    wide = jax.tree.map(np.float64, params)
    random = np.random.default_rng(2)
    for name, gradient in flat(gradients).items():
        *groups, leaf = name.split("/")
        group = functools.reduce(lambda at, key: at[key], groups, wide)
        kept, direction = group[leaf], random.standard_normal(gradient.shape)
        slopes = []
        for h in (1e-6, -1e-6):
            group[leaf] = kept + h * direction
            slopes.append(reference_loss(config, wide, batch) / 2e-6)
        group[leaf] = kept
        assert np.vdot(gradient.astype(np.float64), direction) == pytest.approx(
            slopes[0] - slopes[1], abs=2e-5 * float(np.linalg.norm(gradient)) + 1e-8
        ), name


def test_rows_that_pad_the_vocabulary_have_no_gradient(case):
    config, _, _, _, gradients = case
    assert config.model.vocab_rows > config.model.vocab_size
    assert not gradients["embedding_VD"][config.model.vocab_size :].any()
    if "head_DV" in gradients:
        assert not gradients["head_DV"][:, config.model.vocab_size :].any()


@pytest.mark.parametrize(
    ("block", "documents"),
    [("parallel", [0, 0, 0, 1, 1, 2, 2, 2]), ("serial", None)],
    ids=["parallel", "serial"],
)
def test_a_position_depends_on_its_own_document_up_to_itself(block, documents):
    """d x[t] / d embedding[token s] is zero, except for s <= t in one document. Each token occurs
    once."""
    config = model_config(block=block, kv_heads=2)
    T = 8
    tokens = np.stack([np.arange(T), np.arange(T, 2 * T)]).astype(np.int32)
    segments = None if documents is None else np.stack([documents, np.zeros(T)]).astype(np.int32)
    with jax.set_mesh(mesh_of(data=2, model=4)):
        params = place(config, host_params(config))
        batch = device_batch((tokens, tokens, segments))

        def hidden(embedding):
            changed = {**params, "embedding_VD": embedding}
            tokens = batch.tokens_ABT, batch.segments_ABT
            return hidden_states(config.model, numerics_of(config), changed, *tokens)

        @jax.jit
        def dependence(cotangent):
            return jax.vjp(hidden, params["embedding_VD"])[1](cotangent)[0]

        weights = (
            np.random.default_rng(0)
            .standard_normal((2, T, config.model.d_model))
            .astype(np.float32)
        )
        like = jax.eval_shape(hidden, params["embedding_VD"]).sharding
        seen = np.zeros((2, T, 2, T), bool)
        for b, t in np.ndindex(2, T):
            one = np.zeros_like(weights)
            one[b, t] = weights[b, t]
            cotangent = jax.device_put(one, jax.NamedSharding(jax.sharding.get_mesh(), like.spec))
            rows = jax.device_get(dependence(cotangent))[: 2 * T].reshape(2, T, -1)
            assert ((rows == 0).all(-1) | (np.abs(rows).max(-1) > 1e-6)).all()
            seen[b, t] = (rows != 0).any(-1)
    expected = np.zeros_like(seen)
    for b, t, s in np.ndindex(2, T, T):
        expected[b, t, b, s] = s <= t and (segments is None or segments[b, s] == segments[b, t])
    np.testing.assert_array_equal(seen, expected)


BIASES = ("bq", "bk", "bv", "bo")


@pytest.fixture(scope="module")
def initial():
    """(config, initial parameters on 2x4). No deviation is 1, except where it should be."""
    config = model_config(
        d_model=64,
        heads=4,
        head_dim=32,
        kv_heads=2,
        d_ff=96,
        vocab_size=500,
        head="untied",
        block="serial",
        layers=3,
        attention_bias="qkvo",
        qk_norm="head",
    )
    with jax.set_mesh(mesh_of(data=2, model=4)):
        return config, jax.jit(
            functools.partial(init_params, config.model, numerics_of(config), 0)
        )()


def test_initial_values_follow_the_paper(initial):
    """Kernels N(0, 1/sqrt(fan-in)), embedding N(0, 1), scales 1, biases 0 (PaLM, section 5)."""
    config, params = initial
    fan_in = {"embedding": 1, "wo": 4 * 32, "wdown": 96}
    for name, array in flat(jax.device_get(params)).items():
        kind = name.split("/")[-1].split("_")[0]
        if "scale" in name or kind in BIASES:
            assert (array == (kind not in BIASES)).all(), name
            continue
        scaled = array * fan_in.get(kind, 64) ** 0.5
        assert scaled.std() == pytest.approx(1, abs=4 / scaled.size**0.5), name
        assert scaled.mean() == pytest.approx(0, abs=4 / scaled.size**0.5), name
        # A fifth of a normal distribution is beyond 1.2816 deviations: not uniform, not truncated.
        assert (np.abs(scaled) > 1.2816).mean() == pytest.approx(
            0.2, abs=4 * 0.4 / scaled.size**0.5
        ), name


def test_every_parameter_has_its_own_draw(initial):
    _, params = initial
    random = {n: a for n, a in flat(jax.device_get(params)).items() if a.std() > 0}
    assert len(random) == 9
    arrays = random.values()
    layers = [layer for a in arrays for layer in (a if a.shape[0] == 3 else [a])]
    draws = [array.ravel()[:512] / array.std() for array in layers]
    assert np.abs(np.corrcoef(draws) - np.eye(len(draws))).max() < 0.25


def test_parameters_are_created_sharded_and_equal_on_every_mesh(initial):
    config, params = initial
    for name, array in flat(params).items():
        assert array.is_fully_addressable and len(array.addressable_shards) == 8
        name = name.split("/")[-1]
        shards = 4 if name in ("bq_NH", "bo_D") or name.endswith("scale_D") else 8
        shards = 1 if name in ("bk_KH", "bv_KH") or name.endswith("scale_H") else shards
        assert array.addressable_shards[0].data.size * shards == array.size, name
    with jax.set_mesh(mesh_of()):
        make = jax.jit(init_params, static_argnums=(0, 1, 2))
        whole = make(config.model, numerics_of(config), 0)
        other = make(config.model, numerics_of(config), 1)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), jax.device_get(whole))
    assert (other["embedding_VD"] != whole["embedding_VD"]).mean() > 0.99
