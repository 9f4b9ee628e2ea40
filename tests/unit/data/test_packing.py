import numpy as np
import pytest

from paxlike.data.packing import best_fit, cut_long, fill_rows


def test_best_fit_fills_rows_exactly_where_it_can():
    assert best_fit(np.array([2, 3, 4, 5, 6]), 10).tolist() == [0, 0, 1, 0, 1]
    # First fit would put the 2 into the row with room for 4, and need a third row for the last one.
    assert best_fit(np.array([6, 8, 2, 4]), 10).tolist() == [0, 1, 1, 0]
    assert best_fit(np.array([], np.int64), 10).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_overfills_no_row_and_wastes_little(seed):
    lengths = np.random.default_rng(seed).integers(1, 65, 500)
    rows = best_fit(lengths, 64)
    used = np.bincount(rows, lengths)
    assert used.max() <= 64
    assert (used <= 32).sum() <= 1  # Two such rows would have gone into one.
    assert lengths.sum() / (len(used) * 64) > 0.9
    first = [np.flatnonzero(rows == row)[0] for row in range(len(used))]
    assert first == sorted(first)


def test_cut_long():
    starts, lengths = cut_long(np.array([0, 3, 28]), np.array([3, 25, 10]), 10)
    assert starts.tolist() == [0, 3, 13, 23, 28]
    assert lengths.tolist() == [3, 10, 10, 5, 10]


@pytest.mark.parametrize("slab", [1, 3, 4096])
def test_fill_rows_keeps_every_piece_whole(slab):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 17, 100)
    tokens = np.arange(1, lengths.sum() + 1, dtype=np.uint16)
    starts = np.cumsum(lengths) - lengths
    rows = best_fit(lengths, 16)
    slabs = list(fill_rows(tokens, starts, lengths, rows, 16, slab))
    packed, segments = (np.concatenate(parts) for parts in zip(*slabs, strict=True))
    assert packed.shape == segments.shape == (rows.max() + 1, 16) and packed.dtype == np.uint16
    found = []
    for row in range(len(packed)):
        count = segments[row].max()
        assert segments[row].tolist() == sorted(segments[row].tolist(), key=lambda s: (s == 0, s))
        for segment in range(1, count + 1):
            found.append(packed[row][segments[row] == segment].tolist())
        assert not packed[row][segments[row] == 0].any()
    assert sorted(found) == [
        tokens[s : s + n].tolist() for s, n in zip(starts, lengths, strict=True)
    ]
