"""ReFT changes the stream at positions of prompts only; losses and gradients are the formulas'."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from adapt_cases import config_of, gradients_on, layer_collectives
from helpers import (
    Batch,
    error,
    host_batch,
    host_params,
    loss_and_gradients,
    mesh_of,
    numerics_of,
    place,
    put,
)
from jax.sharding import PartitionSpec as P

from paxlike.accounting.adapted_parameters import trained_count
from paxlike.accounting.hlo_collectives import added
from paxlike.adapt.merge import assembled, merged
from paxlike.adapt.parts import split
from paxlike.adapt.reft import wrap
from paxlike.architecture.reft import interventions
from paxlike.config import AdaptConfig, Config, ConfigError, ModelConfig, OptimConfig, UserError
from paxlike.infer.generate import Generator
from paxlike.infer.logits import logits
from paxlike.infer.score import Scorer
from paxlike.nn.collectives import on_devices
from paxlike.nn.intervention import (
    NAME,
    Prompts,
    chosen,
    document_prompts,
    intervene,
    row_prompts,
)
from paxlike.parallel.mesh import spec
from paxlike.training.state import abstract_state, make_state
from paxlike.training.step import DeviceBatch, Program

pytestmark = pytest.mark.slow

LOREFT = AdaptConfig("reft", rank=3, positions="f2+l3", tied=False)
DIREFT = AdaptConfig("reft", rank=3, form="direft", positions="f1+l2")
RNG = np.random.default_rng(7)


def expected_positions(n: int, first: int, last: int) -> tuple[set[int], set[int]]:
    """Of a prompt of n tokens: the first and the last that are changed (section 4.1)."""
    if first and last and n < first + last:
        first, last = min(first, n // 2), min(last, n - n // 2)
    return set(range(min(first, n))), set(range(n - min(last, n), n))


def documents(targets: np.ndarray, segments: np.ndarray | None) -> list[tuple[int, int, int]]:
    """(row, begin, tokens of the prompt) of every document of a batch."""
    found = []
    for b, row in enumerate(targets):
        marks = [0] * len(row) if segments is None else segments[b].tolist()
        starts = [t for t in range(len(row)) if t == 0 or marks[t] != marks[t - 1]]
        for begin, end in zip(starts, [*starts[1:], len(row)], strict=True):
            predicting = [t for t in range(begin, end) if row[t] >= 0]
            found.append((b, begin, (predicting[0] + 1 if predicting else end) - begin))
    return found


def host_weights(config: Config) -> dict:
    """Random weights of all layers, none of them 0; of LoReFT with orthonormal rows."""
    model, found = config.model, {}
    for names in interventions(config.adapt):
        for spec_ in names:
            shape = (model.layers, *spec_.shape(model))
            found[spec_.name] = RNG.standard_normal(shape).astype(np.float32) / 4
        if config.adapt.form == "loreft":
            square = RNG.standard_normal((model.layers, model.d_model, model.d_model))
            rows = np.linalg.qr(square)[0][:, : config.adapt.rank]
            found[names.rotate.name] = rows.astype(np.float32)
    return found


def changed(config: Config, weights: dict, batch: Batch, layer: int, x: np.ndarray) -> np.ndarray:
    """The stream after a block, one document and position at a time, in float64."""
    x, sets = x.copy(), interventions(config.adapt)
    for b, begin, n in documents(batch.targets, batch.segments):
        groups = expected_positions(n, *config.adapt.prompt_positions)
        assert not groups[0] & groups[1]
        for number, group in enumerate(groups):
            names = sets[number if len(sets) > 1 else 0]
            W, R, bias = (weights[name.name][layer].astype(np.float64) for name in names)
            for t in group:
                h = x[b, begin + t]
                low = W @ h + bias - (R @ h if config.adapt.form == "loreft" else 0)
                x[b, begin + t] = h + R.T @ low
    return x


def reference_loss(config: Config, base: dict, weights: dict, batch: Batch) -> float:
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), base)
    after = functools.partial(changed, config, weights, batch)
    found = reference.logits(wide, config.model, batch.tokens, batch.segments, after)
    loss, _, _ = reference.losses(found, batch.targets, config.train.z_loss)
    return loss / (batch.targets >= 0).sum()


@functools.cache
def expected(adapt: AdaptConfig) -> tuple:
    """(base, weights, loss, directions, slopes of the loss along them, in float64)."""
    config = config_of(adapt)
    base, weights = host_params(config), host_weights(config)
    batch = host_batch(config, segments=True)
    directions, slopes = {}, {}
    for name, value in weights.items():
        direction = RNG.standard_normal(value.shape)
        ends = []
        for step in (1e-5, -1e-5):
            moved = {**weights, name: value.astype(np.float64) + step * direction}
            ends.append(reference_loss(config, base, moved, batch))
        directions[name], slopes[name] = direction, (ends[0] - ends[1]) / 2e-5
    loss = reference_loss(config, base, weights, batch)
    return base, weights, loss, directions, slopes


CASES = {
    "1x1-none": (LOREFT, (1, 1, 1), {"remat": "none"}, False),
    "8x1-full": (LOREFT, (1, 8, 1), {"remat": "full"}, False),
    "1x8-attention": (LOREFT, (1, 1, 8), {"remat": "attention"}, False),
    "2x4-ring": (LOREFT, (1, 2, 4), {}, True),
    "direft-2x4": (DIREFT, (1, 2, 4), {}, False),
    "2x2-expert2": (LOREFT, (1, 2, 2, 2), {}, False),
}


@pytest.mark.parametrize(("adapt", "sizes", "shape", "ring"), CASES.values(), ids=CASES)
def test_losses_and_gradients_are_those_of_the_formulas(adapt, sizes, shape, ring):
    base, weights, expected_loss, directions, slopes = expected(adapt)
    config = config_of(adapt, **shape)
    if ring:
        train = dataclasses.replace(config.train, accumulate=2)
        config = dataclasses.replace(config, train=train)
    loss, gradients = gradients_on(config, sizes, base, weights, ring, segments=True)
    assert loss == pytest.approx(expected_loss, rel=2e-6)
    found = gradients["blocks"]
    assert set(found) == set(weights)
    for name, direction in directions.items():
        slope = float((found[name].astype(np.float64) * direction).sum())
        norm = np.linalg.norm(found[name])
        assert norm > 1e-4 and abs(slope - slopes[name]) < 1e-4 * norm, name


@pytest.mark.parametrize("adapt", [LOREFT, DIREFT], ids=["loreft", "direft"])
def test_a_new_adapter_changes_no_bit(adapt):
    config = config_of(adapt)
    base = host_params(config)
    numerics = numerics_of(config)
    with jax.set_mesh(mesh_of(1, 2, 4)):
        state = make_state(config, numerics, Program.of(config, numerics).optimizer)
        fresh = jax.device_get(state.params)["blocks"]
    loss, gradients = gradients_on(config, (1, 1, 1), base, fresh)
    plain = config_of(AdaptConfig())
    before, _ = loss_and_gradients(plain, mesh_of(), base, host_batch(config), inside=True)
    assert loss == before
    assert any(np.linalg.norm(gradient) > 1e-4 for gradient in gradients["blocks"].values())


def test_rows_stay_orthonormal_on_every_mesh():
    optim = OptimConfig("adamw", 0.05, "constant", warmup_steps=0)
    config = dataclasses.replace(config_of(LOREFT), optim=optim)
    numerics, batch = numerics_of(config), host_batch(config)
    batch.targets[:, :6] = -1  # prompts of 7 tokens
    found = {}
    for sizes in ((1, 1, 1), (1, 2, 4), (1, 2, 2, 2)):
        with jax.set_mesh(mesh_of(*sizes)):
            program = Program.of(config, numerics)
            state = make_state(config, numerics, program.optimizer)
            first = jax.device_get(state.params["blocks"])
            arrays = DeviceBatch(
                put("ABT", batch.tokens[None]), put("ABT", batch.targets[None]), None
            )
            losses = []
            for _ in range(4):
                state, metrics = program.train_step(state, arrays)
                losses.append(float(metrics["loss"]))
                for names in interventions(LOREFT):
                    rows = np.asarray(state.params["blocks"][names.rotate.name], np.float64)
                    gram = rows @ rows.swapaxes(1, 2)
                    assert np.abs(gram - np.eye(3)).max() < 2e-6
                    assert error(rows, first[names.rotate.name]) > 0.01
            assert losses[-1] < losses[0] - 0.005
            found[sizes] = jax.device_get(state.params["blocks"])
    for sizes in ((1, 2, 4), (1, 2, 2, 2)):
        for name, value in found[sizes].items():
            assert error(value, found[1, 1, 1][name]) < 1e-3, name


def test_the_positions_of_every_short_and_long_prompt():
    for first in range(4):
        for last in range(4):
            lengths = np.arange(1, 9)
            prompts = row_prompts(8, 10, jnp.asarray(lengths, jnp.int32))
            masks = [np.asarray(mask) for mask in chosen(prompts, first, last)]
            for row, n in enumerate(lengths):
                expected = expected_positions(int(n), first, last)
                assert tuple(set(np.flatnonzero(mask[row])) for mask in masks) == expected


@pytest.mark.parametrize("segments", [False, True])
def test_a_prompt_ends_with_the_first_token_that_predicts(segments):
    batch = host_batch(config_of(LOREFT), B=16, segments=segments)
    targets = np.where(RNG.random(batch.targets.shape) < 0.7, -1, batch.targets)
    targets[0] = -1
    found = Prompts(*map(np.asarray, document_prompts(jnp.asarray(targets), batch.segments)))
    all_ = documents(targets, batch.segments)
    assert len(all_) == 16 * (3 if segments else 1) or segments
    for number, (b, begin, n) in enumerate(all_):
        last = number + 1 == len(all_) or all_[number + 1][0] != b
        end = targets.shape[1] if last else all_[number + 1][1]
        assert found.places_BT[b, begin:end].tolist() == list(range(end - begin))
        assert set(found.lengths_BT[b, begin:end].tolist()) == {n}


def test_the_change_is_in_the_rows_of_r_and_at_the_positions_only():
    config = config_of(AdaptConfig("reft", rank=3, positions="f2+l1"))
    weights = {name: value[:1] for name, value in host_weights(config).items()}
    (names,) = interventions(config.adapt)
    x_BTD = RNG.standard_normal((4, 6, 32)).astype(np.float32)
    lengths_B = np.array([1, 2, 4, 6], np.int32)

    def device(weights, x_BTD, lengths_B):
        stacks = wrap(config.model, config.adapt, "blocks", weights, {}, None)
        whole = stacks[NAME].whole(NAME, config.model, numerics_of(config), False)
        layer = jax.tree.map(lambda stack: stack[0], whole)
        return intervene(layer, x_BTD, row_prompts(4, 6, lengths_B), numerics_of(config))

    with jax.set_mesh(mesh_of()):
        run = on_devices(device, (P(), P(), P()), spec("BTD", x_BTD.shape))
        change = np.asarray(jax.jit(run)(weights, x_BTD, lengths_B)) - x_BTD
    rows = weights[names.rotate.name][0]
    assert np.linalg.norm(change) > 1
    assert np.linalg.norm(change - change @ rows.T @ rows) < 1e-5
    at = [set(np.flatnonzero(np.abs(row).max(-1))) for row in change]
    assert at == [{0}, {0, 1}, {0, 1, 3}, {0, 1, 5}]


def run_params(config: Config, base: dict, weights: dict) -> dict:
    """What a decoder runs for inference, on the active mesh."""
    trained = split(config.model, config.adapt, base).trained
    numerics = numerics_of(config)
    like = abstract_state(config, numerics, Program.of(config, numerics).optimizer).params
    placed = {
        name: jax.device_put(value, like["blocks"][name].sharding)
        for name, value in weights.items()
    }
    trained = {**trained, "blocks": placed}
    return assembled(config, numerics, place(config, base), trained)


def test_texts_from_the_cache_equal_those_without_and_one_by_one():
    """The adapter is in layer 1 of 2; prompts have different lengths."""
    adapt = dataclasses.replace(LOREFT, layers=(1,))
    config = config_of(adapt)
    model, numerics, base = config.model, numerics_of(config), host_params(config)
    weights = {name: value[:1] * 2 for name, value in host_weights(config).items()}
    prompts = [RNG.integers(1, 90, n).tolist() for n in (2, 4, 9)]
    with jax.set_mesh(mesh_of(1, 2, 4)):
        params, plain = run_params(config, base, weights), place(config, base)

        def texts(params, prompts):
            return Generator(model, numerics, params, 0, 24).generate(prompts, 6)

        found = texts(params, prompts)
        for prompt, text in zip(prompts, found, strict=True):
            assert texts(params, [prompt])[0].tolist() == text.tolist()
        before = texts(plain, prompts)
        assert [a.tolist() for a in found] != [a.tolist() for a in before]
        whole = [prompt + text.tolist() for prompt, text in zip(prompts, found, strict=True)]
        scorer = Scorer(model, numerics, params, 16, 4)
        scores = scorer.score(whole, [len(prompt) for prompt in prompts])
        assert all(score.greedy.all() for score in scores)
        for tokens, prompt, score in zip(whole, prompts, scores, strict=True):
            (alone,) = scorer.score([tokens], [len(prompt)])
            np.testing.assert_allclose(alone.logprobs, score.logprobs, atol=1e-5)
        # Another prompt of the same tokens has other positions.
        (other,) = scorer.score([whole[2]], [4])
        assert np.abs(other.logprobs[5:] - scores[2].logprobs).max() > 1e-3


def test_logits_before_the_first_changed_position_are_the_bases():
    config = config_of(AdaptConfig("reft", rank=3, positions="l2"))
    numerics, base = numerics_of(config), host_params(config)
    tokens = RNG.integers(0, 90, (2, 9))
    with jax.set_mesh(mesh_of()):
        params = run_params(config, base, host_weights(config))
        found = logits(config.model, numerics, params, tokens)
        plain = logits(config.model, numerics, place(config, base), tokens)
    np.testing.assert_array_equal(found[:, :7], plain[:, :7])
    assert np.abs(found[:, 7:] - plain[:, 7:]).max(axis=(0, 2)).min() > 1e-2


def test_an_intervention_sends_one_small_sum_over_model():
    layers = layer_collectives(LOREFT, segments=True)
    base = layer_collectives(AdaptConfig(train=("norms",)), segments=True)
    more = added(layers, base)
    assert {(row.kind, row.axis) for row in more} == {("all-reduce", "model")}
    # The forward and the backward pass of 2 layers: 4 rows of a device, 16 positions, two
    # interventions of rank 3, in float32; and what remat does again.
    (row,) = more
    assert row.payload in (2 * 2 * 4 * 16 * 6 * 4, 3 * 2 * 4 * 16 * 6 * 4), more


LLAMA_7B = ModelConfig(
    layers=32, d_model=4096, heads=32, kv_heads=32, head_dim=128, d_ff=11008, vocab_size=32000
)


@pytest.mark.parametrize(
    ("adapt", "count"),
    [
        (AdaptConfig("reft", rank=4, layers=(3,)), 32_772),
        (AdaptConfig("reft", rank=8), 2_097_408),
        (
            AdaptConfig("reft", rank=4, positions="f5+l5", tied=False, layers=(3, 9, 18, 24)),
            262_176,
        ),
        (AdaptConfig("reft", rank=4, positions="f5", tied=False, layers=(3, 9, 18, 24)), 131_088),
    ],
)
def test_the_numbers_of_parameters_of_the_paper(adapt, count):
    assert trained_count(LLAMA_7B, adapt) == count


def test_it_cannot_be_merged():
    with pytest.raises(UserError, match="interventions on the residual stream cannot be merged"):
        merged(LLAMA_7B, LOREFT, {}, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "7f"}, "adapt.positions is '7f'; write the numbers .* such as f7"),
        ({"positions": "f0+l2"}, "adapt.positions is 'f0.l2'"),
        ({"positions": "f2l2"}, "adapt.positions is 'f2l2'"),
        ({"positions": ""}, "adapt.positions is ''"),
        ({"positions": "f20+l20"}, "f20.l20 are 40 tokens of a prompt, more than data.sequence_l"),
        ({"rank": 33}, "adapt.rank is 33, above model.d_model 32"),
        ({"targets": ("wq",)}, "adapt.targets is set, but adapt.kind is reft"),
        ({"form": "lora"}, "adapt.form is 'lora'; choose among loreft, direft"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with jax.set_mesh(mesh_of()), pytest.raises(ConfigError, match=message):
        config = config_of(dataclasses.replace(LOREFT, **changes))
        data = dataclasses.replace(config.data, sequence_length=32)
        config = dataclasses.replace(config, data=data)
        numerics = numerics_of(config)
        abstract_state(config, numerics, Program.of(config, numerics).optimizer)
