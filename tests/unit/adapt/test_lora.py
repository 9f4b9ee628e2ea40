"""LoRA's losses and gradients follow from the dense model's, on every mesh and policy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapt_cases import config_of, gradients_on, layer_collectives, parts_on_mesh
from helpers import (
    device_batch,
    error,
    flat,
    host_batch,
    host_params,
    loss_and_gradients,
    mesh_of,
    numerics_of,
)

from paxlike.accounting.hlo_collectives import added
from paxlike.adapt.merge import merged
from paxlike.adapt.parts import Parts, split
from paxlike.architecture.lora import lora_updates
from paxlike.config import (
    AdaptConfig,
    Config,
    ConfigError,
    ExpertsConfig,
    QuantConfig,
    UserError,
)
from paxlike.training.state import abstract_state, make_state
from paxlike.training.step import DeviceBatch, Program, loss_gradients

pytestmark = pytest.mark.slow

LORA = AdaptConfig("lora", rank=4, alpha=6.0, train=("norms",))


def host_factors(config: Config) -> dict:
    """Random factors of all layers, none of them 0."""
    random, model = np.random.default_rng(5), config.model
    return {
        spec.name: random.standard_normal((model.layers, *spec.shape(model))).astype(np.float32) / 8
        for pair in lora_updates(model, config.adapt)["blocks"].values()
        for spec in pair
    }


def dense(config: Config, base: dict, factors: dict) -> dict:
    """The parameters with the update in them, computed in float64 by NumPy."""
    blocks = {name: value.astype(np.float64) for name, value in base["blocks"].items()}
    for name, (a, b) in lora_updates(config.model, config.adapt)["blocks"].items():
        wide_a, wide_b = (factors[spec.name].astype(np.float64) for spec in (a, b))
        L, R = wide_a.shape[0], wide_b.shape[1]
        product = wide_a.reshape(L, -1, R) @ wide_b.reshape(L, R, -1)
        blocks[name] += config.adapt.scale * product.reshape(blocks[name].shape)
    return {**base, "blocks": {name: value.astype(np.float32) for name, value in blocks.items()}}


@pytest.fixture(scope="module")
def expected():
    return by_the_chain_rule()


def by_the_chain_rule(**shape):
    """(base, factors, loss, gradients by the chain rule from the dense model's, in float64)."""
    config = config_of(LORA, **shape)
    base, factors = host_params(config), host_factors(config)
    plain = config_of(AdaptConfig(), **shape)
    loss, dense_gradients = loss_and_gradients(
        plain, mesh_of(), dense(config, base, factors), host_batch(config), inside=True
    )
    found = {"scale_D": dense_gradients["scale_D"]}
    for name, gradient in dense_gradients["blocks"].items():
        if "scale" in name:
            found[f"blocks/{name}"] = gradient
    for name, (a, b) in lora_updates(config.model, LORA)["blocks"].items():
        A, B = (factors[spec.name].astype(np.float64) for spec in (a, b))
        L, R = len(A), LORA.rank
        dW = dense_gradients["blocks"][name].astype(np.float64).reshape(L, A[0].size // R, -1)
        flat_a, flat_b = A.reshape(L, -1, R), B.reshape(L, R, -1)
        found[f"blocks/{a.name}"] = LORA.scale * (dW @ flat_b.swapaxes(1, 2)).reshape(A.shape)
        found[f"blocks/{b.name}"] = LORA.scale * (flat_a.swapaxes(1, 2) @ dW).reshape(B.shape)
    return base, factors, loss, found


CASES = {
    "1x1": ((1, 1, 1), {}, False),
    "8x1-full": ((1, 8, 1), {"remat": "full"}, False),
    "1x8-attention": ((1, 1, 8), {"remat": "attention"}, False),
    "2x4-ring": ((1, 2, 4), {}, True),
}


@pytest.mark.parametrize(("sizes", "shape", "ring"), CASES.values(), ids=CASES)
def test_gradients_follow_from_the_dense_weights(expected, sizes, shape, ring):
    config = config_of(LORA, **shape)
    if ring:
        train = dataclasses.replace(config.train, accumulate=2)
        config = dataclasses.replace(config, train=train)
    check(config, expected, sizes, ring)


EXPERT_HEADS = {
    "block": "serial_expert_heads", "norm": "rms",
    "experts": ExpertsConfig(4, 2, 24, 1, balance_loss=0.5, output_bias=True),
}  # fmt: skip


@pytest.mark.parametrize(
    "sizes", [(1, 8, 1), (1, 2, 4), (1, 2, 2, 2)], ids=["8x1", "2x4", "2x2-expert2"]
)
def test_with_expert_heads_keys_values_and_shared_experts_are_adapted(sizes):
    check(config_of(LORA, **EXPERT_HEADS), by_the_chain_rule(**EXPERT_HEADS), sizes)


def check(config, expected, sizes, ring=False):
    base, factors, expected_loss, expected_gradients = expected
    loss, gradients = gradients_on(config, sizes, base, factors, ring)
    assert loss == pytest.approx(expected_loss, rel=2e-6)
    found = flat(gradients)
    assert set(found) == set(expected_gradients)
    errors = {name: error(found[name], value) for name, value in expected_gradients.items()}
    assert max(errors.values()) < 2e-5, errors
    assert min(np.linalg.norm(value) for value in expected_gradients.values()) > 1e-4


def test_a_new_adapter_changes_no_bit_and_learns_b_first(expected):
    base, factors, _, _ = expected
    config = config_of(LORA)
    with jax.set_mesh(mesh_of()):
        numerics = numerics_of(config)
        state = make_state(config, numerics, Program.of(config, numerics).optimizer)
        fresh = jax.device_get(state.params)["blocks"]
    for name, value in fresh.items():
        if "_lora_a_" in name:
            bound = np.prod(value.shape[1:-1]) ** -0.5
            assert 0.8 * bound < np.abs(value).max() <= bound
    start = {name: fresh[name] for name in factors}
    zero_loss, gradients = gradients_on(config, (1, 1, 1), base, start)
    plain = config_of(AdaptConfig())
    before, _ = loss_and_gradients(plain, mesh_of(), base, host_batch(config), inside=True)
    assert zero_loss == before
    for name, gradient in gradients["blocks"].items():
        if "_lora_" in name:
            assert (np.abs(gradient).max() == 0) == ("_lora_a_" in name), name


def test_merging_adds_the_update_on_the_mesh(expected):
    base, factors, _, _ = expected
    config = config_of(LORA)
    numerics = numerics_of(config)
    with jax.set_mesh(mesh_of(1, 2, 4)):
        trained = parts_on_mesh(config, numerics, base, factors).trained
        whole = parts_on_mesh(config_of(AdaptConfig()), numerics, base, {}).trained
        found = flat(jax.device_get(merged(config.model, LORA, whole, trained)))
    reference = flat(dense(config, base, factors))
    assert max(error(value, reference[name]) for name, value in found.items()) < 1e-6
    assert error(found["blocks/wk_DKH"], base["blocks"]["wk_DKH"]) > 0.01


def test_a_pattern_with_an_incomplete_period_equals_its_merged_model():
    shape = {"pattern": ("serial_local", "serial"), "layers": 5, "sliding_window": 5}
    adapt = dataclasses.replace(LORA, train=())
    config, plain = (config_of(one, norm="rms", **shape) for one in (adapt, AdaptConfig()))
    base, numerics, random = host_params(config), numerics_of(config), np.random.default_rng(5)
    with jax.set_mesh(mesh_of(1, 2, 4)):
        like = abstract_state(config, numerics, Program.of(config, numerics).optimizer)
        factors = jax.tree.map(
            lambda leaf: random.standard_normal(leaf.shape).astype(np.float32) / 8, like.params
        )
        parts = Parts(factors, split(config.model, adapt, base).frozen)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, (like.params, like.frozen))
        parts = Parts(*jax.device_put(tuple(parts), shardings))
        batch = device_batch(host_batch(config))
        batch = DeviceBatch(*(None if x is None else x[None] for x in batch))
        tokens = (batch.targets_ABT >= 0).sum().astype(jnp.float32)
        run = jax.jit(lambda parts, batch: loss_gradients(config, numerics, parts, batch, tokens))
        gradients, losses = run(parts, batch)
        whole = parts_on_mesh(plain, numerics, base, {}, "blocks_0").trained
        whole = jax.device_get(merged(config.model, adapt, whole, parts.trained))
        found = float(losses.loss / tokens)
    assert {name.split("/")[0] for name in flat(gradients)} == {
        "blocks_0", "blocks_1", "blocks_rest_0"
    }  # fmt: skip
    assert all(np.linalg.norm(gradient) > 1e-4 for gradient in flat(gradients).values())
    expected, _ = loss_and_gradients(plain, mesh_of(), whole, host_batch(config), inside=True)
    without, _ = loss_and_gradients(plain, mesh_of(), base, host_batch(config), inside=True)
    assert found == pytest.approx(expected, rel=2e-6) and abs(found - without) > 1e-3


def test_layers_send_nothing_in_addition_and_frozen_weights_have_no_gradient():
    """The compiled steps of LoRA, of the norms alone, and of all parameters, on 2 x 4 devices."""
    ways = {"lora": LORA, "norms": AdaptConfig(train=("norms",)), "all": AdaptConfig()}
    layers = {name: layer_collectives(adapt) for name, adapt in ways.items()}
    # The gradient of A reads the stream, which is gathered again as in any training.
    more = added(layers["lora"], layers["norms"])
    assert [(row.kind, row.axis) for row in more] == [("all-gather", "model")]
    assert added(layers["lora"], layers["all"]) == []

    def over_data(name: str) -> set[str]:
        return {c.kind for c in layers[name] if c.axis == "data" and c.payload > 256}

    assert over_data("lora") == {"all-gather"}
    assert over_data("all") - {"all-gather"}


def test_bitnet_adapters_stay_beside_their_base():
    quant = QuantConfig("bitnet_b158", "code", 8)
    config = config_of(dataclasses.replace(LORA, train=()), quant=quant, kv_heads=1)
    base, factors = host_params(config), host_factors(config)
    one, gradients = gradients_on(config, (1, 1, 1), base, factors)
    other, others = gradients_on(config, (1, 2, 4), base, factors)
    assert one == pytest.approx(other, rel=5e-5)
    assert max(error(flat(others)[n], g) for n, g in flat(gradients).items()) < 5e-3
    with pytest.raises(UserError, match="cannot be merged.*bitnet_b158.*quantized anew"):
        merged(config.model, config.adapt, base, factors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 9}, r"adapt.rank is 9, above .* of wk_DKH, which is 32 x 8; choose at most 8"),
        ({"targets": ("wqq",)}, "adapt.targets has 'wqq'.*choose among all, .*Did you mean wq"),
        ({"train": ("norm",)}, "adapt.train has 'norm'.*Did you mean norms"),
        ({"train": ("attention",)}, "both have wq_DNH"),
        ({"layers": (2,)}, "adapt.layers has 2; the model has layers 0 to 1"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(changes, message):
    config = config_of(dataclasses.replace(LORA, **changes))
    with jax.set_mesh(mesh_of()), pytest.raises(ConfigError, match=message):
        numerics = numerics_of(config)
        abstract_state(config, numerics, Program.of(config, numerics).optimizer)
