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
    kept_arrays,
    loss_and_gradients,
    mesh_of,
    model_config,
    numerics_of,
    training_loss,
)

from paxlike.training.state import abstract_params

B, T, D, F, N, K, H, L = 10, 20, 32, 56, 16, 2, 4, 3
DATA, MODEL = 2, 4
# One device's arrays. K is whole: there are fewer key/value heads than model shards.
NAMES = {
    (B // DATA, T, D // MODEL): "BTD",
    (B // DATA, T, D): "gathered BTD",
    (B // DATA, T, F // MODEL): "BTF",
    (B // DATA, T, N // MODEL, H): "BTNH",
    (B // DATA, T, K, H): "BTKH",
}
POLICIES = ["none", "dots", "attention", "full", "palm"]


def kept(policy: str, block: str) -> tuple[collections.Counter, list, list]:
    """What one device's backward pass reads: activations by name, the shapes of other arrays, and
    the shapes of the parameters' shards."""
    config = model_config(remat=policy, layers=L, heads=N, kv_heads=K, d_ff=F, block=block)
    numerics = numerics_of(config)
    with jax.set_mesh(mesh_of(data=DATA, model=MODEL)):
        params = abstract_params(config, numerics)
        batch = device_batch(host_batch(config, B=B, T=T))

        leaves = kept_arrays(config, numerics, params, batch)
        stored = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(params)]
    activations, others = collections.Counter(), []
    for shape in (leaf.shape for leaf in leaves):
        if shape[:1] == (L,) and T in shape:
            activations[NAMES.get(shape[1:], "scores" if shape.count(T) == 2 else "other")] += 1
        elif T not in shape:
            others.append(shape)
    return activations, others, stored


@pytest.mark.parametrize("block", ["parallel", "serial"])
@pytest.mark.parametrize("policy", POLICIES)
def test_kept_per_layer(policy, block):
    activations, others, stored = kept(policy, block)
    if policy in ("full", "palm"):
        assert activations == {"BTD": 1}
    elif policy == "dots":
        assert activations == {"BTD": 1, "BTNH": 1, "BTKH": 2, "BTF": 2}
    elif policy == "attention":
        stream = 1 if block == "parallel" else 2
        assert activations == {"BTD": stream, "BTNH": 2, "BTKH": 2, "BTF": 2}
    else:
        assert activations["scores"] >= 1 and activations["BTF"] >= 2
    assert not activations["gathered BTD"]
    # No gathered weight, and no stored one twice: what is as large as a matrix is a parameter's
    # shard, or the gradient of the tied head, which the loss has computed and the lookup adds to
    # before it is summed over `data`.
    matrices = [shape for shape in stored if math.prod(shape) > L * D // MODEL]  # not norm scales
    smallest = min(map(math.prod, matrices))
    large = collections.Counter(shape for shape in others if math.prod(shape) >= smallest)
    head_gradient = (96 // MODEL, D)
    assert large[head_gradient] == 1 and large <= collections.Counter([*matrices, head_gradient])


@pytest.mark.parametrize("policy", POLICIES[1:4])
def test_results_are_those_without_rematerialization(policy, plain):
    config, params, batch, expected_loss, expected = plain
    changed = model_config(remat=policy, kv_heads=2)
    loss, gradients = loss_and_gradients(
        changed, mesh_of(data=2, model=4), params, batch, inside=True
    )
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in flat(gradients).items():
        assert error(gradient, flat(expected)[name]) < 2e-6, name


@pytest.fixture(scope="module")
def plain():
    config = model_config(remat="none", kv_heads=2)
    params, batch = host_params(config), host_batch(config, segments=True)
    return (
        config,
        params,
        batch,
        *loss_and_gradients(config, mesh_of(data=2, model=4), params, batch, inside=True),
    )


@pytest.mark.parametrize("policy", ["none", "full"])
def test_memory_of_the_compiled_program(policy):
    """Under `full`, temporaries grow for each layer by one device's shard of x_BTD. Under `none`
    they grow by the activations of 16 tokens, but not by a layer's weights, which are many times
    larger here: the backward pass reads the stored ones."""
    shape = {"d_model": 128, "d_ff": 512, "head_dim": 16}

    def temporaries(layers):
        config = model_config(remat=policy, layers=layers, **shape)
        with jax.set_mesh(mesh_of(data=2, model=4)):
            params = abstract_params(config, numerics_of(config))
            batch = device_batch(host_batch(config, B=2, T=8))
            step = jax.jit(functools.partial(training_loss, config)).lower(params, batch)
            return step.compile().memory_analysis().temp_size_in_bytes

    # Many layers, because what few of them keep may fit into memory that other temporaries free.
    grown = (temporaries(128) - temporaries(64)) / 64
    stream, feed_forward = 2 * 8 * 128 * 4 // 8, 3 * 128 * 512 * 4 // 8
    assert grown == stream if policy == "full" else stream < grown < feed_forward / 2
