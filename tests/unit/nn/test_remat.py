"""Each policy keeps what its row of the table says, and none changes a result."""

import collections
import functools
import math

import jax
import pytest
from helpers import (
    device_batch,
    error,
    flat,
    host_batch,
    host_params,
    loss_and_gradients,
    mean_loss,
    mesh_of,
    model_config,
    numerics_of,
)  # fmt: skip

from paxlike.train.state import abstract_params

B, T, D, F, N, K, H, L = 10, 24, 32, 56, 8, 2, 4, 3
NAMES = {(B, T, D): "BTD", (B, T, F): "BTF", (B, T, N, H): "BTNH", (B, T, K, H): "BTKH"}
POLICIES = ["none", "dots", "attention", "full", "palm"]


def kept(policy: str, block: str) -> tuple[collections.Counter, list, dict]:
    """What the backward pass is given: activations by name, other arrays [shape, spec], and the parameters."""
    config = model_config(remat=policy, layers=L, kv_heads=K, d_ff=F, block=block)
    with jax.set_mesh(mesh_of(data=2, model=4)):
        params = abstract_params(config, numerics_of(config))
        batch = device_batch(host_batch(config, B=B, T=T))
        pullback = jax.eval_shape(lambda p: jax.vjp(lambda q: mean_loss(config, q, batch), p)[1], params)
    activations, others = collections.Counter(), []
    for leaf in jax.tree.leaves(pullback):
        if leaf.shape[0:1] == (L,) and T in leaf.shape:
            activations[NAMES.get(leaf.shape[1:], "scores" if leaf.shape.count(T) == 2 else "other")] += 1
        elif T not in leaf.shape:
            others.append((leaf.shape, leaf.sharding.spec if leaf.sharding else None))
    return activations, others, params


@pytest.mark.parametrize("block", ["parallel", "serial"])
@pytest.mark.parametrize("policy", POLICIES)
def test_kept_per_layer(policy, block):
    activations, others, params = kept(policy, block)
    if policy in ("full", "palm"):
        assert activations == {"BTD": 1}
    elif policy == "dots":
        assert activations == {"BTD": 1, "BTNH": 1, "BTKH": 2, "BTF": 2}
    elif policy == "attention":
        stream = 1 if block == "parallel" else 2
        assert activations == {"BTD": stream, "BTNH": 2, "BTKH": 2, "BTF": 2}
    else:
        assert activations["scores"] >= 1 and activations["BTF"] >= 2
    # No gathered weight, and no stored one twice: what is as large as a matrix is a parameter, as stored.
    matrices = [leaf for leaf in jax.tree.leaves(params) if len(leaf.shape) > 2 or leaf.shape[0] > L]
    stored = collections.Counter((leaf.shape, leaf.sharding.spec) for leaf in matrices)
    stored[params["embedding_VD"].shape, params["embedding_VD"].sharding.spec] += 1  # its gradient, from the loss
    large = collections.Counter(row for row in others if math.prod(row[0]) >= D * K * H)
    assert large and large <= stored


@pytest.mark.parametrize("policy", POLICIES[1:4])
def test_results_are_those_without(policy, plain):
    config, params, batch, expected_loss, expected = plain
    changed = model_config(remat=policy, kv_heads=2)
    loss, gradients = loss_and_gradients(changed, mesh_of(data=2, model=4), params, batch)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in flat(gradients).items():
        assert error(gradient, flat(expected)[name]) < 2e-6, name


@pytest.fixture(scope="module")
def plain():
    config = model_config(remat="none", kv_heads=2)
    params, batch = host_params(config), host_batch(config, segments=True)
    return config, params, batch, *loss_and_gradients(config, mesh_of(data=2, model=4), params, batch)


@pytest.mark.parametrize("policy", ["none", "full"])
def test_memory_of_the_compiled_program(policy):
    """Its temporaries grow, for each layer, by one device's part of x_BTD under `full`; under `none` by the activations of 16
    tokens, and not by a layer's weights, which are many times as large here: the backward pass reads the stored ones."""
    shape = {"d_model": 128, "d_ff": 512, "head_dim": 16}

    def temporaries(layers):
        config = model_config(remat=policy, layers=layers, **shape)
        with jax.set_mesh(mesh_of(data=2, model=4)):
            params = abstract_params(config, numerics_of(config))
            batch = device_batch(host_batch(config, B=2, T=8))
            step = jax.jit(jax.grad(functools.partial(mean_loss, config))).lower(params, batch)
            return step.compile().memory_analysis().temp_size_in_bytes

    grown = (temporaries(12) - temporaries(4)) / 8
    stream, feed_forward = 2 * 8 * 128 * 4 // 8, 3 * 128 * 512 * 4 // 8
    assert grown == stream if policy == "full" else stream < grown < feed_forward / 2
