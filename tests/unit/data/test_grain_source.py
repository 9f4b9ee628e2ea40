import numpy as np
import pytest

from paxlike.config import DataConfig, TrainConfig, UserError
from paxlike.data import source
from paxlike.data.grain_source import TrainBatches, ValidationBatches
from paxlike.data.source import open_data

RAMP = TrainConfig(batch_size=8, batch_ramp=((2, 3), (4, 5)))


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.fixture
def batches(store):
    return TrainBatches(store, DataConfig(sequence_length=32, seed=3), RAMP)


def numbers(batches, tokens_BT):
    """Which sequence each row is."""
    every = batches.sequences.read(range(len(batches.sequences))).tokens_BT
    return [np.flatnonzero((every == row).all(1)).item() for row in tokens_BT]


def equal(one, two):
    return all(
        (a is None and b is None) or np.array_equal(a, b) for a, b in zip(one, two, strict=True)
    )


def test_sizes_follow_the_ramp(batches):
    assert [batches.batch_size(k) for k in range(7)] == [2, 2, 2, 4, 4, 8, 8]
    for k in range(7):
        assert len(batches.read_batch(k).tokens_BT) == batches.batch_size(k)


def test_a_pass_reads_every_sequence_once_and_the_next_in_another_order(batches):
    count = len(batches.sequences)
    assert count > 100
    k, order = 0, []
    while len(order) < 2 * count:
        order += numbers(batches, batches.read_batch(k).tokens_BT)
        k += 1
    first, second = order[:count], order[count : 2 * count]
    assert sorted(first) == sorted(second) == list(range(count))
    assert first != second and first != sorted(first)


def test_the_order_is_frozen(make_store, tmp_path):
    """Batch k must stay what it is: a new version of Grain that shuffles otherwise would change
    every resumed run.
    """
    (tmp_path / "numbers.txt").write_text("".join(f"{number:04}" for number in range(1001)))
    store = make_store(input=(f"{tmp_path}/numbers.txt",), validation_fraction=1e-9)
    batches = TrainBatches(store, DataConfig(sequence_length=4, seed=3), RAMP)
    read = [
        store.tokenizer.decode(row)
        for k in (0, 5, 10**6)
        for row in batches.read_batch(k).tokens_BT
    ]
    assert list(map(int, read)) == [
        *(104, 380),
        *(487, 173, 694, 348, 299, 693, 15, 139),
        *(98, 338, 642, 128, 742, 449, 622, 454),
    ]


def test_the_seed_and_nothing_else_chooses_the_order(store, batches):
    again = TrainBatches(store, DataConfig(sequence_length=32, seed=3), RAMP)
    again.read_batch(77)
    other = TrainBatches(store, DataConfig(sequence_length=32, seed=4), RAMP)
    for k in (9, 0, 123_456_789):
        assert equal(again.read_batch(k), batches.read_batch(k))
        assert not equal(other.read_batch(k), batches.read_batch(k))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_read_the_batch(batches, hosts):
    for k in (0, 4, 6):
        whole, size = batches.read_batch(k), batches.batch_size(k)
        shares = np.array_split(np.random.default_rng(k).permutation(size), hosts)
        for share in shares:
            part = batches.read_batch(k, share)
            assert np.array_equal(part.tokens_BT, whole.tokens_BT[share])
            assert np.array_equal(part.targets_BT, whole.targets_BT[share])


@pytest.mark.parametrize("start", [0, 4, 10**6])
def test_reading_ahead_gives_the_same_batches(batches, start):
    every_second = batches.batches(start, lambda size: np.arange(1, size, 2))
    for k in range(start, start + 12):
        batch, rows = next(every_second), np.arange(1, batches.batch_size(k), 2)
        assert equal(batch, batches.read_batch(k, rows))


def test_a_split_smaller_than_a_batch_repeats(make_store, text_folder):
    small = make_store("small", input=(f"{text_folder}/0[01].txt",), validation_fraction=0.5)
    batches = TrainBatches(small, DataConfig(sequence_length=256), TrainConfig(batch_size=16))
    count = len(batches.sequences)
    assert 1 <= count < 8
    found = numbers(batches, batches.read_batch(0).tokens_BT)
    assert len(found) == 16 and sorted(found[:count]) == list(range(count))


def test_rows_outside_the_batch_are_an_error(batches):
    for rows in ([2], [-1], [0, 5]):
        with pytest.raises(IndexError, match="batch of 2"):
            batches.read_batch(0, np.array(rows))
    assert batches.read_batch(0, np.array([], int)).tokens_BT.shape == (0, 32)


@pytest.mark.parametrize("settings", [{}, {"packing": "whole", "sequence_length": 32}])
def test_a_validation_pass_covers_every_sequence_once(make_store, settings):
    store = make_store("v", **settings)
    data = DataConfig(sequence_length=32, packing=settings.get("packing", "split"))
    validation = ValidationBatches(store, data, TrainConfig(batch_size=10))
    count = len(validation.sequences)
    assert count % 10, "the last batch should have rows to fill up"
    read = list(validation.batches(10**9))
    assert len(read) == len(validation) == -(-count // 10)
    every = validation.sequences.read(range(count))
    for name in ("tokens_BT", "targets_BT"):
        joined = np.concatenate([getattr(batch, name) for batch in read])
        assert sorted(map(bytes, joined[:count])) == sorted(map(bytes, getattr(every, name)))
        assert not np.array_equal(joined[:count], getattr(every, name)), (
            "the first batches should be a sample of all"
        )
        assert len(joined) == 10 * len(read)
    assert (read[-1].targets_BT[count % 10 :] == -1).all()
    assert [equal(a, b) for a, b in zip(validation.batches(2), read, strict=False)] == [True, True]
    halves = [list(validation.batches(2, lambda size, h=h: np.arange(h, size, 2))) for h in (0, 1)]
    assert np.array_equal(halves[0][1].tokens_BT, read[1].tokens_BT[0::2])
    assert np.array_equal(halves[1][1].tokens_BT, read[1].tokens_BT[1::2])
    with pytest.raises(IndexError, match=f"batch {len(read)} is not in 0"):
        validation.read_batch(len(read))


def test_open_data(make_store, monkeypatch):
    folder = make_store().folder
    assert open_data(DataConfig(store=str(folder))).folder == folder
    asked = []
    monkeypatch.setattr(source, "default_store", lambda data: asked.append(data) or folder)
    assert open_data(DataConfig()).folder == folder and asked == [DataConfig()]
    with pytest.raises(UserError, match="not a token store"):
        open_data(DataConfig(store="nowhere"))
