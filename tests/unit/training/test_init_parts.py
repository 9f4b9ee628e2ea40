"""Any part of a converted parameter equals that part of the whole conversion, in plain NumPy."""

import itertools

import numpy as np
import pytest

from paxlike.training import init_parts
from paxlike.training.init_parts import FewerHeads, HeadOfEmbedding, Vocabulary, full


def parts_of(shape: tuple[int, ...], pieces: int = 3):
    """Slices that cover an array, as shards do, and one of everything."""
    ends = [np.linspace(0, size, min(pieces, size) + 1).astype(int) for size in shape]
    slices = [[slice(int(a), int(b)) for a, b in itertools.pairwise(one)] for one in ends]
    return [full((slice(None),) * len(shape), shape), *itertools.product(*slices)]


def check(parts, expected: np.ndarray, **tolerance) -> None:
    assert parts.shape == expected.shape
    for index in parts_of(expected.shape):
        np.testing.assert_allclose(parts[index], expected[index], **{"rtol": 1e-6, **tolerance})


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.mark.parametrize("heads", [1, 2, 6])
@pytest.mark.parametrize("shape", [(5, 6, 4), (6, 4)])
def test_fewer_heads_pool_contiguous_groups(random, shape, heads):
    axis = len(shape) - 2
    w = random.standard_normal(shape).astype(np.float32)
    groups = [list(range(k * 6 // heads, (k + 1) * 6 // heads)) for k in range(heads)]
    mean = np.stack([w.take(group, axis).mean(axis) for group in groups], axis)
    first = np.stack([w.take(group[0], axis) for group in groups], axis)
    check(FewerHeads(w, axis, heads, "mean"), mean)
    check(FewerHeads(w, axis, heads, "first"), first)


def test_equal_heads_are_pooled_exactly(random):
    w = random.standard_normal((5, 2, 4)).astype(np.float32)
    repeated = FewerHeads(w.repeat(3, 1), 1, 2, "mean")
    found = repeated[full((slice(None),) * 3, (5, 2, 4))].astype(np.float32)
    assert np.array_equal(found, w)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("new", "stored"), [(17, 20), (11, 12), (11, 11), (30, 30)])
def test_new_ids_have_the_mean_of_the_old(random, monkeypatch, axis, new, stored):
    monkeypatch.setattr(init_parts, "ROWS", 4)  # several blocks
    old = random.standard_normal((13, 6)).astype(np.float32)
    old[11:] = 1e9  # padding of the source: never read as ids
    mean = np.broadcast_to(old[:11].mean(0), (new - 11, 6))
    expected = np.concatenate([old[:11], mean, np.zeros((stored - new, 6), np.float32)])
    source = old if axis == 0 else old.T
    check(
        Vocabulary(source, axis, 11, new, stored),
        expected if axis == 0 else expected.T,
        atol=1e-6,
    )


def test_a_head_made_of_the_embedding_has_its_logits(random):
    table = random.standard_normal((12, 16)).astype(np.float32)
    check(HeadOfEmbedding(table, 0.25), table.T / 4)
