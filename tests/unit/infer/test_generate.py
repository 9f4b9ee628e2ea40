"""Generation: sampled tokens and their distribution, stopping, and one program for all steps."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.config import ExpertsConfig, UserError
from paxlike.infer.cache import prefill
from paxlike.infer.generate import Generator, Sampling, _start, _step, in_compute_dtype, sample
from paxlike.parallel.mesh import batch_shards

pytestmark = pytest.mark.slow

NEW = 12
NO_EOD = 249
PROMPTS = [np.array([5, 17, 100, 3, 88]), np.array([42]), np.arange(13) * 7 % 250]


def most_likely(model, prompt: np.ndarray, generated: np.ndarray) -> list[int]:
    """The most likely token at each generated position, by the uncached forward pass."""
    whole = np.concatenate([prompt, generated])
    logits = model.logits(np.tile(whole, (batch_shards(), 1)).astype(np.int32))
    return logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()


SERIAL = {
    "kv_heads": 2,
    "block": "serial",
    "norm": "rms",
    "head": "untied",
    "feed_forward": "relu2",
}
EXPERTS = {
    "kv_heads": 2,
    "block": "serial_experts",
    "norm": "rms",
    "head": "untied",
    "experts": ExpertsConfig(4, 2, 32),
}


@pytest.mark.parametrize(
    ("words", "sizes"),
    [({}, (1, 1, 1)), (SERIAL, (1, 2, 4)), (EXPERTS, (1, 1, 2, 4))],
    ids=["palm", "serial", "experts"],
)
def test_greedy_is_the_argmax_of_the_uncached_forward(words, sizes, on_mesh, make):
    with on_mesh(*sizes):
        model = make(**words)
        generated = Generator(
            model.config, model.numerics, model.params, NO_EOD, max_length=64
        ).generate(PROMPTS, NEW)
        for prompt, row in zip(PROMPTS, generated, strict=True):
            assert row.tolist() == most_likely(model, prompt, row)
            assert len(row) == NEW and len(set(row)) > 2


def drawn(model, prompts, seed: int) -> list[list[int]]:
    generator = Generator(model.config, model.numerics, model.params, NO_EOD, max_length=64)
    return [
        row.tolist()
        for row in generator.generate(prompts, NEW, Sampling(1.0, top_k=100, top_p=0.95), seed)
    ]


def test_a_row_does_not_depend_on_other_rows_or_the_mesh(on_mesh, make):
    with on_mesh(1, 1, 1):
        one_device_rows = drawn(make(), PROMPTS, seed=1)
    with on_mesh(1, 2, 4):
        mesh_rows = drawn(make(), [PROMPTS[0], np.array([7, 7]), PROMPTS[2], np.array([8])], seed=1)
    assert (one_device_rows[0], one_device_rows[2]) == (mesh_rows[0], mesh_rows[2])


def test_rows_and_seeds_give_different_samples(one_device, make):
    first, second, again = (drawn(make(), [PROMPTS[0]] * 3, seed) for seed in (1, 2, 1))
    assert first == again
    assert len({tuple(row) for row in first + second}) == 6


def test_a_text_ends_at_eod_and_tokens_stream(one_device, make):
    model = make()
    whole = Generator(model.config, model.numerics, model.params, NO_EOD, max_length=64).generate(
        PROMPTS, NEW
    )
    first = [row.tolist() for row in whole]
    eod = next(t for t in first[0][1:] if t != first[0][0])
    truncated = [row[: row.index(eod)] if eod in row else row for row in first]
    assert 0 < len(truncated[0]) < NEW

    streamed: list[list[int]] = [[] for _ in PROMPTS]
    generator = Generator(model.config, model.numerics, model.params, eod, max_length=64)
    generated = generator.generate(
        PROMPTS, NEW, on_token=lambda row, token: streamed[row].append(token)
    )
    assert [row.tolist() for row in generated] == truncated == streamed
    assert all(row.dtype == np.int32 for row in generated)


def test_every_step_runs_the_same_program(one_device, make):
    model = make(d_ff=64)
    generator = Generator(model.config, model.numerics, model.params, NO_EOD, max_length=128)
    starts, steps = _start._cache_size(), _step._cache_size()
    for prompt, new in ((PROMPTS[0], 40), (PROMPTS[1], 120), (np.arange(16), 3)):
        generator.generate([prompt], new, Sampling(temperature=1.0), seed=new)
    assert _step._cache_size() - steps == 1
    assert _start._cache_size() - starts == 1


def draw(logits_BV: np.ndarray, position: int, sampling: Sampling, put) -> np.ndarray:
    positions_B = np.full(len(logits_BV), position, np.int32)
    logits_BV = jax.device_put(
        logits_BV, NamedSharding(jax.sharding.get_mesh(), P(("pod", "data"), None))
    )
    return np.asarray(
        jax.jit(sample, static_argnums=3)(logits_BV, put("B", positions_B), np.uint32(0), sampling)
    )


def distribution(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities by their definition, in float64."""
    exps = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    order = np.argsort(-exps, kind="stable")[: top_k or len(exps)]
    likely = exps[order] / exps[order].sum()
    count = next(n for n in range(1, len(likely) + 1) if likely[:n].sum() >= top_p - 1e-12)
    kept = np.zeros(len(exps))
    kept[order[:count]] = likely[:count] / likely[:count].sum()
    return kept


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 5, 1.0), (1.0, 0, 0.6),
        (1.5, 8, 0.7), (1.0, 0, 1e-6), (1.0, 99, 1.0),
    ],
)  # fmt: skip
def test_samples_follow_the_distribution(temperature, top_k, top_p, one_device, put):
    draws = 10_000
    logits = np.random.default_rng(3).normal(0, 1.5, 40).astype(np.float32)
    expected = distribution(logits, temperature, top_k, top_p)
    generated = draw(np.tile(logits, (draws, 1)), 0, Sampling(temperature, top_k, top_p), put)
    frequencies = np.bincount(generated, minlength=40) / draws
    assert set(np.flatnonzero(frequencies)) <= set(np.flatnonzero(expected))
    # Five standard deviations of a binomial frequency, plus three samples for very unlikely tokens.
    assert (
        np.abs(frequencies - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws) + 3 / draws
    ).all()
    assert (frequencies[expected == 1] == 1).all()


def test_top_k_keeps_k_of_equal_tokens_and_samples_differ_by_position(one_device, put):
    first, second = (
        draw(np.zeros((64, 40), np.float32), position, Sampling(1.0, 3), put) for position in (0, 1)
    )
    assert set(first) == set(second) == {0, 1, 2}
    assert (first != second).any()


def test_matrices_are_cast_once_without_changing_a_bit(one_device, make, put):
    model = make(compute="bfloat16")
    cast = in_compute_dtype(model.params, model.numerics)
    assert cast["blocks"]["wq_DNH"].dtype == cast["embedding_VD"].dtype == "bfloat16"
    assert cast["blocks"]["scale_D"].dtype == cast["scale_D"].dtype == "float32"
    tokens_BT, lengths_B = (
        put("BT", np.arange(16, dtype=np.int32)[None]),
        put("B", np.array([9], np.int32)),
    )
    start = jax.jit(functools.partial(prefill, model.config, model.numerics, cache_length=16))
    logits = [np.asarray(start(params, tokens_BT, lengths_B)[1]) for params in (model.params, cast)]
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize(
    ("prompts", "new", "seed", "words"),
    [
        ([], 4, 0, ["no prompts"]),
        ([[1, 2], []], 4, 0, ["prompt 1", "empty"]),
        ([[1, 250]], 4, 0, ["prompt 0", "250", "249", "tokenizer"]),
        ([[-1]], 4, 0, ["-1"]),
        ([[1] * 61], 4, 0, ["61", "4", "64", "max_length"]),
        ([[1]], 0, 0, ["max_new_tokens is 0"]),
        ([[1]], 4, -1, ["seed", "-1"]),
    ],
)
def test_invalid_requests_raise(prompts, new, seed, words, one_device, make):
    model = make()
    generator = Generator(model.config, model.numerics, model.params, NO_EOD, max_length=64)
    with pytest.raises(UserError) as error:
        generator.generate(prompts, new, seed=seed)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_last_position_of_the_cache_is_usable(one_device, make):
    model = make()
    prompt = np.arange(120) % 200
    generated = Generator(
        model.config, model.numerics, model.params, NO_EOD, max_length=128
    ).generate([prompt], 8)[0]
    assert generated.tolist() == most_likely(model, prompt, generated)
    assert len(generated) == 8


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.5},
    ],
)
def test_invalid_sampling_settings_raise(settings):
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=f"{name} is {value}"):
        Sampling(**settings)
