"""A prefix of a real text has the text's effect; its gradients are those of finite differences."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    Batch,
    device_batch,
    error,
    flat,
    host_batch,
    host_params,
    mesh_of,
    model_config,
    numerics_of,
    place,
    put,
)

from paxlike.accounting.adapted_parameters import trained_count
from paxlike.accounting.hlo_collectives import list_collectives
from paxlike.adapt.merge import assembled, merged
from paxlike.adapt.parts import Parts, split
from paxlike.adapt.prefix import of_text
from paxlike.config import AdaptConfig, Config, ConfigError, ExpertsConfig, UserError, load
from paxlike.infer.generate import Generator
from paxlike.infer.logits import logits
from paxlike.infer.score import Scorer
from paxlike.models.decoder import hidden_states
from paxlike.training.state import State, abstract_state, make_state
from paxlike.training.step import DeviceBatch, Program, loss_gradients, losses_of

pytestmark = pytest.mark.slow

PREFIX = AdaptConfig("prefix", prefix_length=4, prefix_hidden=0)
NETWORK = AdaptConfig("prefix", prefix_length=4, prefix_hidden=8)
RNG = np.random.default_rng(3)
TEXT = RNG.integers(0, 90, 20).tolist()

SHAPES: dict[str, dict] = {
    "multi-query": {},
    "blocked": {"attention": "blocked", "kv_heads": 2, "block": "serial"},
    "windows": {
        "pattern": ("serial_local", "serial"), "layers": 3, "sliding_window": 6, "kv_heads": 4,
        "attention": "blocked",
    },
    "learned positions": {"learned_positions": 32, "kv_heads": 8},
    "expert heads": {
        "block": "serial_expert_heads", "experts": ExpertsConfig(4, 2, 24), "kv_heads": 2,
        "attention": "blocked",
    },
}  # fmt: skip


def config_of(adapt: AdaptConfig, **shape) -> Config:
    config = model_config(**shape)
    data = dataclasses.replace(config.data, sequence_length=20)
    return dataclasses.replace(config, data=data, adapt=adapt)


def with_prefix(config: Config, base: dict, tokens: list[int]) -> dict:
    """What a decoder runs after these tokens, on the active mesh."""
    numerics = numerics_of(config)
    start = of_text(config.model, numerics, base, tokens)
    trained = {**split(config.model, config.adapt, base).trained, **start}
    return assembled(config, numerics, base, trained)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_real_text_as_a_prefix_has_the_effect_of_the_text(shape):
    config = config_of(PREFIX, **shape)
    base, numerics = host_params(config), numerics_of(config)
    sizes = (1, 2, 4) if shape.get("attention") else (1, 1, 1)
    with jax.set_mesh(mesh_of(*sizes)):
        placed = place(config, base)
        params = with_prefix(config, placed, TEXT[:4])
        whole = logits(config.model, numerics, placed, np.array([TEXT, TEXT]))
        rest = logits(config.model, numerics, params, np.array([TEXT[4:], TEXT[4:]]))
        alone = logits(config.model, numerics, placed, np.array([TEXT[4:], TEXT[4:]]))
        assert error(rest[0], whole[0, 4:]) < 2e-6 < 1e-2 < error(alone[0], whole[0, 4:])

        def texts(params, prompts):
            most = 16 if config.model.learned_positions else 24
            return Generator(config.model, numerics, params, 0, most).generate(prompts, 6)

        # Prompts of different lengths in one batch, from the cache.
        prompts = [TEXT[4:7], TEXT[4:12]]
        found = texts(params, prompts)
        long = [TEXT[:4] + prompt for prompt in prompts]
        expected = Generator(config.model, numerics, placed, 0, 28).generate(long, 6)
        assert [a.tolist() for a in found] == [a.tolist() for a in expected]
        scorer = Scorer(config.model, numerics, params, 16, 2)
        (score,) = scorer.score([TEXT[4:]], [1])
        (reference,) = Scorer(config.model, numerics, placed, 19, 2).score([TEXT], [5])
        np.testing.assert_allclose(score.logprobs, reference.logprobs, atol=3e-5)


@pytest.mark.parametrize("kernel", ["reference", "blocked"])
def test_every_document_of_a_row_sees_the_prefix_as_it_does_alone(kernel):
    config = config_of(PREFIX, attention=kernel, pattern=("parallel_local", "parallel"),
                       sliding_window=5)  # fmt: skip
    numerics = numerics_of(config)
    row, segments = np.array([TEXT[4:12] + TEXT[:8]]), np.array([[1] * 8 + [2] * 8])
    with jax.set_mesh(mesh_of()):
        params = with_prefix(config, place(config, host_params(config)), TEXT[:4])
        run = jax.jit(functools.partial(hidden_states, config.model, numerics))
        both = run(params, put("BT", row), put("BT", segments))
        one = run(params, put("BT", row[:, :8]))
        other = run(params, put("BT", row[:, 8:]))
    np.testing.assert_allclose(both[:, :8], one, atol=3e-6)
    np.testing.assert_allclose(both[:, 8:], other, atol=3e-6)


def test_the_order_of_a_prefix_does_not_matter():
    config = config_of(PREFIX)
    with jax.set_mesh(mesh_of()):
        params = with_prefix(config, place(config, host_params(config)), TEXT[:4])
        prefix = params["blocks"]["prefix"]
        turned = dataclasses.replace(prefix, k=prefix.k[:, ::-1], v=prefix.v[:, ::-1])
        other = {**params, "blocks": {**params["blocks"], "prefix": turned}}
        tokens = np.array([TEXT[4:]])
        one, two = (logits(config.model, numerics_of(config), p, tokens) for p in (params, other))
        wrong = dataclasses.replace(prefix, k=prefix.v, v=prefix.k)
        other = {**params, "blocks": {**params["blocks"], "prefix": wrong}}
        three = logits(config.model, numerics_of(config), other, tokens)
    assert error(two, one) < 1e-6 < 1e-2 < error(three, one)


def shapes_of(config: Config) -> State:
    numerics = numerics_of(config)
    return abstract_state(config, numerics, Program.of(config, numerics).optimizer)


def random_weights(config: Config) -> dict:
    """The adapter's weights, all random, on the host."""
    random = np.random.default_rng(7)
    with jax.set_mesh(mesh_of()):
        like = shapes_of(config)
    return jax.tree.map(
        lambda x: (0.5 * random.standard_normal(x.shape)).astype(np.float32), like.params
    )


def placed_parts(config: Config, base: dict, trained: dict) -> Parts:
    like = shapes_of(config)
    parts = Parts(trained, split(config.model, config.adapt, base).frozen)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (like.params, like.frozen))
    return Parts(*jax.device_put(tuple(parts), shardings))


def step_gradients(config: Config, sizes: tuple, base: dict, trained: dict, batch: Batch):
    with jax.set_mesh(mesh_of(*sizes)):
        rows = DeviceBatch(*(None if x is None else x[None] for x in device_batch(batch)))
        tokens = (rows.targets_ABT >= 0).sum().astype(jnp.float32)
        run = functools.partial(loss_gradients, config, numerics_of(config))
        parts = placed_parts(config, base, trained)
        gradients, losses = jax.jit(run)(parts, rows, tokens)
        return float(losses.loss / tokens), flat(jax.device_get(gradients))


CASES = {
    "8x1-full-blocked": ((1, 8, 1), {"remat": "full", "attention": "blocked"}),
    "1x8": ((1, 1, 8), {}),
    "2x4-attention-blocked": ((1, 2, 4), {"remat": "attention", "attention": "blocked"}),
    "2x2-expert2": ((1, 2, 2, 2), {}),
}
SHAPE = {"kv_heads": 2, "block": "serial"}


class Expected(NamedTuple):
    """Of one device and plain attention."""

    base: dict
    trained: dict
    batch: Batch
    loss: float
    gradients: dict


@pytest.fixture(scope="module")
def expected():
    config = config_of(NETWORK, **SHAPE)
    base, trained = host_params(config), random_weights(config)
    batch = host_batch(config, segments=True)
    return Expected(base, trained, batch, *step_gradients(config, (1, 1, 1), base, trained, batch))


def test_gradients_are_those_of_finite_differences(expected):
    """Along the gradient of each weight, whose slope is its norm."""
    config, predicted = config_of(NETWORK, **SHAPE), (expected.batch.targets >= 0).sum()
    assert set(expected.gradients) == set(flat(expected.trained))
    with jax.set_mesh(mesh_of()):
        rows = device_batch(expected.batch)
        run = jax.jit(lambda parts: losses_of(config, numerics_of(config), parts, rows).loss)

        def loss(name: str, change: np.ndarray) -> float:
            moved = jax.tree.map(np.copy, expected.trained)
            *group, last = name.split("/")
            (moved[group[0]] if group else moved)[last] += change
            return float(run(placed_parts(config, expected.base, moved))) / predicted

        for name, gradient in expected.gradients.items():
            norm = np.linalg.norm(gradient)
            step = (gradient / norm * min(0.5, 1e-2 / norm)).astype(np.float32)
            slope = (loss(name, step) - loss(name, -step)) / (2 * np.linalg.norm(step))
            assert slope == pytest.approx(norm, rel=0.02) and norm > 1e-4, name


@pytest.mark.parametrize(("sizes", "changes"), CASES.values(), ids=CASES)
def test_gradients_on_every_mesh(expected, sizes, changes):
    config = config_of(NETWORK, **{**SHAPE, **changes})
    loss, gradients = step_gradients(config, sizes, expected.base, expected.trained, expected.batch)
    assert loss == pytest.approx(expected.loss, rel=3e-6)
    errors = {n: error(gradients[n], g) for n, g in expected.gradients.items()}
    assert max(errors.values()) < 2e-5, errors


def test_a_trained_network_is_flattened_to_the_same_model(expected):
    base, trained, batch, loss, _ = expected
    config = config_of(NETWORK, **SHAPE)
    numerics = numerics_of(config)
    with jax.set_mesh(mesh_of(1, 2, 4)):
        parts = placed_parts(config, base, trained)
        params = assembled(config, numerics, place(config, base), parts.trained)
        assert "prefix_k_out_IKH" not in params["blocks"] and "prefix_rows_QD" not in params
        rows = device_batch(batch)
        run = jax.jit(functools.partial(losses_of, config, numerics))
        found = float(run(params, rows).loss) / float((batch.targets >= 0).sum())
        without = float(run(place(config, base), rows).loss) / float((batch.targets >= 0).sum())
    assert found == pytest.approx(loss, rel=2e-6) and abs(without - loss) > 1e-3


def test_layers_send_nothing_in_addition():
    """On 2 x 4 devices, beside a step that trains the norms alone."""
    found = {}
    for name, adapt in (("prefix", NETWORK), ("norms", AdaptConfig(train=("norms",)))):
        config = config_of(adapt, **SHAPE)
        numerics = numerics_of(config)
        with jax.set_mesh(mesh_of(1, 2, 4)):
            program = Program.of(config, numerics)
            rows = DeviceBatch(
                *(None if x is None else x[None] for x in device_batch(host_batch(config)))
            )
            state = abstract_state(config, numerics, program.optimizer)
            compiled = program.train_step.lower(state, rows).compile()
        everything = list_collectives(compiled.as_text(), {"pod": 1, "data": 2, "model": 4})
        found[name] = sorted((c.kind, c.axis) for c in everything if c.in_loop and c.payload > 256)
    assert found["prefix"] == found["norms"]


def test_counts():
    """3 billion parameters, grouped-query attention of 8 heads, as PEFT counts a prefix of 200."""
    model = dataclasses.replace(
        load("tiny").model, layers=28, d_model=3072, heads=24, kv_heads=8, head_dim=128
    )
    direct = AdaptConfig("prefix", prefix_length=200, prefix_hidden=0)
    assert trained_count(model, direct) == 11_468_800
    with_network = AdaptConfig("prefix", prefix_length=200, prefix_hidden=512)
    expected = 200 * 3072 + 3072 * 512 + 512 + 28 * 2 * (512 + 1) * 8 * 128
    assert trained_count(model, with_network) == expected


def test_new_weights_do_not_depend_on_the_mesh():
    config, found = config_of(NETWORK, **SHAPE), []
    for sizes in ((1, 1, 1), (1, 2, 4)):
        with jax.set_mesh(mesh_of(*sizes)):
            state = make_state(
                config, numerics_of(config), Program.of(config, numerics_of(config)).optimizer
            )
            found.append(flat(jax.device_get(state.params)))
    assert all((found[0][name] == found[1][name]).all() for name in found[0])
    assert 0.8 < found[0]["prefix_rows_QD"].std() < 1.2


def test_bad_input():
    with pytest.raises(ConfigError, match="prefix_prompt is set, but adapt.prefix_hidden is 512"):
        AdaptConfig("prefix", prefix_prompt="Answer:")
    with pytest.raises(ConfigError, match="adapt.rank is set, but adapt.kind is prefix"):
        AdaptConfig("prefix", rank=4)
    with pytest.raises(ConfigError, match="adapt.prefix_length is set, .*none.*choose prefix"):
        AdaptConfig(prefix_length=3)
    with pytest.raises(ConfigError, match="together are above model.learned_positions 32"):
        config_of(AdaptConfig("prefix", prefix_length=13), learned_positions=32)
    with pytest.raises(ConfigError, match="model.attention is splash, which has no prefix"):
        config_of(PREFIX, attention="splash")
    config = config_of(dataclasses.replace(PREFIX, layers=(0,)))
    with jax.set_mesh(mesh_of()), pytest.raises(ConfigError, match="a prefix is in all layers"):
        shapes_of(config)
    with pytest.raises(UserError, match="a prefix cannot be merged"):
        merged(config.model, PREFIX, {}, {})
