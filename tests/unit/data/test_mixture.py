"""Mixtures: exact proportions at every length, random access, phases, and their errors."""

import numpy as np
import pytest

from paxlike.config import ConfigError, DataConfig, TrainConfig
from paxlike.data.mixture import MixedOrder, Schedule, integer_weights, open_stores
from paxlike.data.mixture_batches import MixtureBatches
from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.data.source import open_data, train_batches, validation_batches, weights_at

WEIGHTS = [
    (0.7, 0.3),
    (1.0, 2.0, 3.0),
    (0.2499, 0.2499, 0.2499, 0.2499, 0.0004),
    (1 / 3, 2 / 3),
    (1, 0, 1),
    (0.123456, 0.876544),
    (5.0,),
    (0.01, 0.99),
    tuple(range(1, 12)),
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_proportions_are_exact_to_one_sequence_at_every_length(weights):
    schedule, exact = Schedule(weights), np.array(weights) / sum(weights)
    length = 3000
    chosen = np.array([schedule.store(s) for s in range(length)])
    counts = np.cumsum(chosen[:, None] == np.arange(len(weights)), axis=0)
    shares = np.arange(1, length + 1)[:, None] * exact
    assert np.abs(counts - shares).max() < 1
    for s in (0, 1, 17, 999, length - 1):
        before = counts[s - 1] if s else np.zeros(len(weights))
        assert schedule.counts(s).tolist() == before.tolist()
    far = 10**9 + 7
    assert np.abs(schedule.counts(far) - far * exact).max() < 1 + far * 1e-9
    assert schedule.counts(far).sum() == far


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((0.7, 0.3), (7, 3)),
        ((1 / 3, 2 / 3), (1, 2)),
        ((2, 4, 6), (1, 2, 3)),
        ((0.1, 0.2, 0.7), (1, 2, 7)),
        ((1, 0), (1, 0)),
        ((np.pi, np.e), (536120, 463880)),
    ],
)
def test_integer_weights(weights, expected):
    found = integer_weights(weights)
    assert np.allclose(np.array(found) / sum(found), np.array(weights) / sum(weights), atol=1e-6)
    if sum(expected) < 100:
        assert found == expected
    assert sum(found) <= 10**6


def test_phases_go_on_where_the_last_ended():
    order = MixedOrder([(0, (1, 1)), (10, (0, 1)), (25, (3, 1))])
    places = [order.place(s) for s in range(60)]
    for store in (0, 1):
        numbers = [number for which, number in places if which == store]
        assert numbers == list(range(len(numbers)))
    stores = [store for store, _ in places]
    assert sum(stores[:10]) == 5 and stores[10:25] == [1] * 15
    assert abs(stores[25:].count(0) - 0.75 * 35) < 1
    assert order.counts(60).tolist() == [stores.count(0), stores.count(1)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three stores of letters, one with another tokenizer."""
    root = tmp_path_factory.mktemp("stores")
    for name, letters in (("web", "ab"), ("code", "cd"), ("other", "ef")):
        random = np.random.default_rng(len(name))
        for number in range(12):
            text = "".join(random.choice(list(letters), 300))
            (root / f"{name}-{number}.txt").write_text(text)
        tokenizer = "sentencepiece" if name == "other" else "bytes"
        prepare(
            PrepareConfig(
                (str(root / f"{name}-*.txt"),), str(root / name), tokenizer=tokenizer,
                tokenizer_vocab=263, validation_fraction=0.3,
            )
        )  # fmt: skip
    return root


def data(folders, weights=(0.75, 0.25), **more) -> DataConfig:
    names = [str(folders / name) for name in ("web", "code")]
    return DataConfig(mixture=tuple(zip(names, weights, strict=True)), sequence_length=16, **more)


def test_batches(folders):
    config, train = data(folders), TrainConfig(batch_size=8, steps=20)
    batches = train_batches(open_data(config), config, train)
    assert isinstance(batches, MixtureBatches)
    web = 0
    for k in range(100):
        batch = batches.read_batch(k)
        of_web = np.isin(batch.tokens_BT, [100, 101]).any(-1)  # a, b
        of_code = np.isin(batch.tokens_BT, [102, 103]).any(-1)
        assert (of_web ^ of_code).all()
        web += of_web.sum()
        assert abs(web - 0.75 * 8 * (k + 1)) < 1
        rows = batches.read_batch(k, np.array([5, 2]))
        assert np.array_equal(rows.tokens_BT, batch.tokens_BT[[5, 2]])
        assert np.array_equal(rows.targets_BT, batch.targets_BT[[5, 2]])
    epochs = batches.epochs(100)
    lengths = [len(one) for one in batches._sequences]
    assert list(epochs.values()) == pytest.approx([600 / lengths[0], 200 / lengths[1]], abs=0.02)
    again = train_batches(open_data(config), config, train)
    ahead = list(zip(range(3), again.batches(4), strict=False))
    assert all(np.array_equal(b.tokens_BT, batches.read_batch(4 + k).tokens_BT) for k, b in ahead)


def test_weights_change_at_a_step(folders):
    name = str(folders / "web")
    config = data(folders, mixture_changes=((3, name, 0.0),))
    train = TrainConfig(batch_size=4, batch_ramp=((2, 2),), steps=9)
    mixture = open_data(config)
    batches = train_batches(mixture, config, train)
    of_web = [np.isin(batches.read_batch(k).tokens_BT, [100, 101]).any() for k in range(8)]
    assert all(of_web[:3]) and not any(of_web[3:])
    assert list(weights_at(mixture, 2).values()) == [0.75, 0.25]
    assert list(weights_at(mixture, 3).values()) == [0.0, 1.0]


def test_each_store_has_its_validation(folders):
    config = data(folders)
    parts = validation_batches(open_data(config), config, TrainConfig(batch_size=4))
    letters = {name: set(part.read_batch(0).tokens_BT.ravel()) for name, part in parts.items()}
    assert [found & {100, 101, 102, 103} for found in letters.values()] == [{100, 101}, {102, 103}]


def test_stores_with_different_tokenizers(folders):
    names = [str(folders / name) for name in ("web", "other")]
    with pytest.raises(ConfigError, match=r"different tokenizers: .*web has bytes with 259 ids"):
        open_stores(DataConfig(mixture=((names[0], 1.0), (names[1], 1.0))))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixture": (("a", 0.0), ("b", 0.0))}, r"are \[0.0, 0.0\]; they must be 0 or more"),
        ({"mixture": (("a", -1.0), ("b", 2.0))}, "must be 0 or more"),
        ({"mixture": (("a", float("nan")),)}, "must be 0 or more"),
        ({"mixture": (("a", 1.0), ("a", 2.0))}, "names a store twice"),
        ({"mixture": (("a", 1.0),), "store": "b"}, "data.store is 'b' and data.mixture is"),
        (
            {"mixture": (("a", 1.0),), "mixture_changes": ((5, "b", 1.0),)},
            r"has \(5, 'b'\); the step must be above 0 and the store one of data.mixture \(a\)",
        ),
        ({"mixture": (("a", 1.0),), "mixture_changes": ((5, "a", 0.0),)}, "from step 5 on are"),
        ({"mixture_changes": ((5, "b", 1.0),)}, r"one of data.mixture \(empty\)"),
        ({"mixture": ("a", "b")}, "has the entry 'a'; it must be a tuple of str, float"),
        ({"mixture": (("a", "b"),)}, "must be a tuple of str, float"),
    ],
)
def test_mixtures_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**fields)
