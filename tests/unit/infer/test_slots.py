"""Slots that start and end at different times generate the same tokens as alone."""

import jax
import numpy as np
import pytest
from helpers import host_params, mesh_of, model_config, numerics_of, place
from interop_cases import expected_logits

from paxlike.config import DepthsConfig
from paxlike.infer.slots import Settings, Slots

pytestmark = pytest.mark.slow

CONFIG = model_config()
ROUTED = model_config(
    pattern=("parallel", "parallel_routed"), layers=4, depths=DepthsConfig(0.5, 16), kv_heads=2
)
PROMPTS = [[5, 6, 7], [80], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8], [30, 31]]


def logprobs_after(tokens: list[int], config=CONFIG) -> np.ndarray:
    logits = expected_logits(config, tokens=np.array(tokens))[-1]
    return logits - np.log(np.exp(logits).sum())


def slots_on(*sizes, rows=3, config=CONFIG):
    mesh = mesh_of(*sizes)
    with jax.set_mesh(mesh):
        params = place(config, host_params(config))
        return mesh, Slots(config.model, numerics_of(config), params, rows, 48)


@pytest.mark.parametrize(
    ("sizes", "config"),
    [
        ((1, 1, 1), CONFIG), ((1, 2, 4), CONFIG), ((1, 2, 2, 2), CONFIG),
        ((1, 1, 1), ROUTED), ((1, 2, 4), ROUTED),
    ],
    ids=["1x1", "2x4", "2x2-expert2", "routed-1x1", "routed-2x4"],
)  # fmt: skip
def test_slots_are_admitted_and_freed_independently(sizes, config):
    """Greedy tokens are the reference's most likely ones, with its log-probabilities."""
    mesh, slots = slots_on(*sizes, config=config)
    texts: dict[int, list[int]] = {}

    def check(drawn, rows):
        for row in rows:
            expected = logprobs_after(texts[row], config)
            token = int(drawn.token[row])
            assert expected[token] == pytest.approx(expected.max(), abs=1e-4)
            assert drawn.logprob[row] == pytest.approx(expected[token], abs=1e-4)
            np.testing.assert_allclose(
                drawn.best_logprobs[row], np.sort(expected)[::-1][:5], atol=1e-4
            )
            np.testing.assert_allclose(
                expected[drawn.best[row]], drawn.best_logprobs[row], atol=1e-4
            )
            texts[row] = [*texts[row], token]

    def admit(**rows):
        new = {int(name[1:]): PROMPTS[number] for name, number in rows.items()}
        texts.update({row: list(prompt) for row, prompt in new.items()})
        check(slots.admit(new, {row: Settings() for row in new}), new)

    with jax.set_mesh(mesh):
        admit(r0=0)
        check(slots.step(), [0])
        admit(r1=1, r2=2)
        for _ in range(3):
            check(slots.step(), [0, 1, 2])
        slots.free(0)
        check(slots.step(), [1, 2])
        admit(r0=3)
        for _ in range(3):
            check(slots.step(), [0, 1, 2])


def test_samples_depend_only_on_the_row():
    drawn = []
    for sizes, other, row in (((1, 1, 1), None, 0), ((1, 1, 1), 1, 2), ((1, 2, 1), 2, 1)):
        mesh, slots = slots_on(*sizes, rows=4)
        with jax.set_mesh(mesh):
            if other is not None:
                slots.admit({3: PROMPTS[other]}, {3: Settings(1.0, 0.9, 5)})
            tokens = [slots.admit({row: PROMPTS[0]}, {row: Settings(1.0, 0.9, 7)}).token[row]]
            tokens += [slots.step().token[row] for _ in range(5)]
        drawn.append([int(token) for token in tokens])
    assert drawn[0] == drawn[1] == drawn[2] and len(set(drawn[0])) > 1


def test_top_p_and_temperature_shape_the_distribution():
    mesh, slots = slots_on(1, 1, 1, rows=64)
    expected = np.exp(logprobs_after(PROMPTS[0]) / 0.5)
    expected /= expected.sum()
    order = expected.argsort()[::-1]
    nucleus = set(order[: (np.cumsum(expected[order]) < 0.6).sum() + 1].tolist())
    counts = np.zeros(90)
    with jax.set_mesh(mesh):
        for batch in range(8):
            rows = dict.fromkeys(range(64), PROMPTS[0])
            drawn = slots.admit(rows, {row: Settings(0.5, 0.6, batch * 64 + row) for row in rows})
            np.add.at(counts, drawn.token, 1)
    assert set(np.flatnonzero(counts).tolist()) <= nucleus
    inside = np.array(sorted(nucleus))
    probabilities = expected[inside] / expected[inside].sum()
    assert np.abs(counts[inside] / counts.sum() - probabilities).max() < 4 * np.sqrt(0.25 / 512)
