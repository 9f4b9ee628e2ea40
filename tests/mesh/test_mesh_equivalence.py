"""Loss and every gradient are the same on every mesh, over architectures and meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    error,
    flat,
    host_batch,
    host_params,
    loss_and_gradients,
    mesh_of,
    model_config,
    outside_and_inside,
)

from paxlike.config import (
    DepthsConfig,
    ExpertsConfig,
    MeshConfig,
    PrecisionConfig,
    RopeScalingConfig,
)
from paxlike.nn.collectives import gather, total
from paxlike.training import step

# With 1, 2, 4 and 8 model shards: fewer key/value heads than shards, as many, and more.
ARCHITECTURES = {
    "multi-query": {"kv_heads": 1},
    "grouped-serial-rms-untied-relu2": {
        "kv_heads": 2, "block": "serial", "norm": "rms", "head": "untied", "feed_forward": "relu2",
        "remat": "dots",
    },
    "grouped-segments-xla": {
        "kv_heads": 4, "attention": "xla", "segments": True, "remat": "attention",
    },
    "multi-head-segments": {
        "kv_heads": 8, "feed_forward": "gelu", "segments": True, "remat": "full",
    },
    "biases-qk-norm": {"kv_heads": 2, "attention_bias": "qkvo", "qk_norm": "head"},
    "pattern": {"pattern": ("parallel", "serial"), "layers": 4, "remat": "dots"},
    "neox": {
        "block": "parallel_two_norms", "norm_bias": True, "feed_forward": "gelu_exact",
        "feed_forward_bias": True, "attention_bias": "qkvo", "rope_fraction": 0.5,
        "head": "untied", "kv_heads": 8,
    },
}  # fmt: skip
OTHERS = {
    "gemma": {
        "pattern": ("serial_local", "serial"), "layers": 3, "sliding_window": 5, "norm": "rms",
        "norm_placement": "both", "norm_offset": True, "qk_norm": "head", "query_scale": 0.3,
        "attention_softcap": 2.0, "logit_softcap": 3.0, "embedding_scale": 1.5, "kv_heads": 2,
        "local_rope_theta": 100.0, "rope_scaling": RopeScalingConfig("linear", 4.0),
        "feed_forward": "geglu", "remat": "attention",
    },
    "olmo": {
        "block": "serial", "norm": "rms", "norm_placement": "after", "qk_norm": "heads",
        "kv_heads": 2, "head": "untied", "segments": True,
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
        "experts": ExpertsConfig(
            4, 3, 16, 1, "sigmoid", renormalize=False, balance_loss=0.5, z_loss=0.1
        ),
    },
    "depths": {
        "pattern": ("parallel", "parallel_routed"), "layers": 3, "kv_heads": 2, "segments": True,
        "depths": DepthsConfig(0.3, 8), "remat": "attention",
    },
    "serial-depths": {
        "pattern": ("serial_routed", "serial"), "kv_heads": 8, "depths": DepthsConfig(0.25, 8),
        "norm": "rms", "head": "untied",
    },
    "expert-heads": {
        "block": "serial_expert_heads", "norm": "rms", "kv_heads": 2, "segments": True,
        "experts": ExpertsConfig(4, 2, 24, balance_loss=0.5, z_loss=0.1, output_bias=True),
    },
    "parallel-expert-heads": {
        "pattern": ("parallel_expert_heads", "serial"), "layers": 3, "kv_heads": 4,
        "remat": "dots", "experts": ExpertsConfig(3, 2, 16, balance_loss=0.5, z_loss=0.1),
    },
}  # fmt: skip
"""Options of other families, each on one mesh."""
MESHES = {"8x1": (1, 8, 1), "1x8": (1, 1, 8), "2x4": (1, 2, 4), "2x2x2": (2, 2, 2)}


@pytest.fixture(scope="module", params=ARCHITECTURES.values(), ids=ARCHITECTURES)
def alone(request):
    return one_device(request.param)


def one_device(changes):
    """(config, parameters, batch, loss, gradients) on one device."""
    changes = dict(changes)
    segments = changes.pop("segments", False)
    config = model_config(**changes)
    params, batch = host_params(config), host_batch(config, segments=segments)
    return config, params, batch, *loss_and_gradients(config, mesh_of(), params, batch)


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_loss_and_gradients_are_those_of_one_device(alone, sizes):
    """Differentiated outside of the map, and inside as in training."""
    check_mesh(alone, sizes, 5e-6)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gemma", (2, 2, 2)),
        ("olmo", (1, 1, 8)),
        ("learned-positions", (1, 2, 4)),
        ("experts", (1, 8, 1)),
        ("experts", (1, 2, 4)),
        ("shared-experts", (2, 2, 2)),
        ("depths", (1, 8, 1)),
        ("depths", (1, 2, 4)),
        ("serial-depths", (1, 1, 8)),
        ("serial-depths", (2, 2, 2)),
        ("expert-heads", (1, 8, 1)),
        ("expert-heads", (1, 2, 4)),
        ("parallel-expert-heads", (1, 2, 4)),
    ],
)
def test_options_of_other_families(name, sizes):
    """Scores near a softcap lose digits."""
    check_mesh(one_device(OTHERS[name]), sizes, 2e-5)


@pytest.mark.parametrize("transport", ["gather", "all_to_all"])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("experts", (1, 1, 2, 2)),
        ("experts", (1, 2, 1, 4)),
        ("shared-experts", (2, 1, 2, 2)),
        ("expert-heads", (1, 2, 2, 2)),
        ("expert-heads", (1, 1, 1, 4)),
    ],
)
def test_expert_shards(name, sizes, transport):
    config, *found = one_device(OTHERS[name])
    config = dataclasses.replace(config, mesh=MeshConfig(expert_transport=transport))
    check_mesh((config, *found), sizes, 2e-5)


def check_mesh(alone, sizes, tolerance):
    config, params, batch, expected_loss, expected = alone
    found = outside_and_inside(config, mesh_of(*sizes), params, batch)
    for kind, (loss, gradients) in found.items():
        assert loss == pytest.approx(expected_loss, rel=1e-6), kind
        errors = {name: error(g, flat(expected)[name]) for name, g in flat(gradients).items()}
        assert max(errors.values()) < tolerance, (kind, errors)
    assert all(np.linalg.norm(gradient) > 1e-4 for gradient in flat(expected).values())


def test_an_auxiliary_loss_has_the_same_gradients_on_every_mesh(monkeypatch):
    """A scalar that all devices along `model` compute alike counts once, and parameters of which
    several devices hold a copy get the sum of their gradients.

    One term is of the gathered stream, the other a sum over `model` of the shards. Not a mean of
    squares, because the last norm fixes it.
    """
    next_token = step.OBJECTIVE

    def with_auxiliary_loss(config, decoder, x_BTD, part):
        losses = next_token(config, decoder, x_BTD, part)
        gathered = jnp.mean(gather(x_BTD, "model", 2) ** 4, axis=-1).sum()
        summed = total((jnp.abs(x_BTD) ** 3).sum(), "model")
        return losses._replace(loss=losses.loss + gathered + summed)

    config = model_config(kv_heads=2, attention_bias="qkvo", qk_norm="head")
    params, batch = host_params(config), host_batch(config)
    plain = loss_and_gradients(config, mesh_of(), params, batch)[1]
    monkeypatch.setattr(step, "OBJECTIVE", with_auxiliary_loss)
    expected = loss_and_gradients(config, mesh_of(), params, batch)[1]
    changes = jax.tree.map(error, plain, expected)
    assert min(flat(changes).values()) > 0.1, changes
    for sizes in ((1, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)):
        for kind, (_, gradients) in outside_and_inside(
            config, mesh_of(*sizes), params, batch
        ).items():
            errors = jax.tree.map(error, gradients, expected)
            assert max(flat(errors).values()) < 5e-6, (sizes, kind, errors)


def test_bfloat16_is_close_to_float32():
    """bfloat16 has 8 bits of mantissa: 0.4 % for each rounding. Gradients have dtype float32."""
    config = model_config()
    params, batch = host_params(config), host_batch(config)
    expected_loss, expected = loss_and_gradients(config, mesh_of(), params, batch)
    narrow = dataclasses.replace(
        config, precision=PrecisionConfig(compute="bfloat16", gradients="bfloat16")
    )
    found = outside_and_inside(narrow, mesh_of(data=2, model=4), params, batch)
    for kind, (loss, gradients) in found.items():
        assert loss == pytest.approx(expected_loss, rel=5e-3), kind
        errors = {name: error(g, flat(expected)[name]) for name, g in flat(gradients).items()}
        assert 1e-4 < max(errors.values()) < 0.05, (kind, errors)
        assert {gradient.dtype for gradient in flat(gradients).values()} == {np.dtype("float32")}
