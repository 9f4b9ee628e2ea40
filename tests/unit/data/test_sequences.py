import numpy as np
import pytest

from paxlike.config import ConfigError, DataConfig, UserError
from paxlike.data.sequences import Sequences


@pytest.mark.parametrize("length", [1, 7, 64, 1000])
def test_split_sequences_are_the_stream_and_the_stream_a_token_later(make_store, length):
    store = make_store()
    stream = store.tokens("train").tolist()
    sequences = Sequences(store, DataConfig(sequence_length=length), "train")
    assert len(sequences) == (len(stream) - 1) // length
    batch = sequences.read([0, len(sequences) - 1])
    assert batch.segments_BT is None
    for row, number in enumerate((0, len(sequences) - 1)):
        begin = number * length
        assert batch.tokens_BT[row].tolist() == stream[begin : begin + length]
        assert batch.targets_BT[row].tolist() == stream[begin + 1 : begin + length + 1]
    assert batch.tokens_BT.dtype == batch.targets_BT.dtype == np.int32


def test_a_split_sequence_may_use_the_very_last_token(make_store):
    store = make_store()
    count = store.manifest.splits["train"].tokens
    assert len(Sequences(store, DataConfig(sequence_length=count - 1), "train")) == 1
    with pytest.raises(
        UserError, match=f"train split .* has {count} tokens, too few .*sequence_length {count} "
    ):
        Sequences(store, DataConfig(sequence_length=count), "train")


def test_whole_targets_stay_inside_their_segment(make_store):
    store = make_store(packing="whole", sequence_length=48)
    sequences = Sequences(store, DataConfig(packing="whole", sequence_length=48), "train")
    assert len(sequences) == store.manifest.splits["train"].rows
    batch = sequences.read(range(len(sequences)))
    assert batch.segments_BT.max() > 1 and (batch.segments_BT == 0).any()
    for tokens, targets, segments in zip(*batch, strict=True):
        for t in range(48):
            inside = t + 1 < 48 and segments[t] > 0 and segments[t] == segments[t + 1]
            assert targets[t] == (tokens[t + 1] if inside else -1)
    assert (batch.targets_BT[batch.tokens_BT == store.manifest.eod] == -1).all()
    assert all(array.dtype == np.int32 for array in batch)


def test_numbers_outside_are_filled_with_nothing_to_predict(make_store):
    sequences = Sequences(make_store(), DataConfig(sequence_length=32), "train")
    batch = sequences.read([-1, len(sequences), 0])
    assert (batch.targets_BT[:2] == -1).all() and (batch.tokens_BT[:2] == 0).all()
    assert (batch.targets_BT[2] >= 0).all()


def test_the_wrong_packing_or_length_is_a_config_error(make_store):
    split, whole = make_store("split"), make_store("whole", packing="whole", sequence_length=48)
    with pytest.raises(
        ConfigError, match="data.packing is 'whole', .* packed 'split'; set .* --packing whole"
    ):
        Sequences(split, DataConfig(packing="whole"), "train")
    with pytest.raises(ConfigError, match="data.packing is 'split', .* packed 'whole'"):
        Sequences(whole, DataConfig(), "train")
    with pytest.raises(
        ConfigError, match="sequence_length is 32, .* whole for 48; .* --sequence-length 32"
    ):
        Sequences(whole, DataConfig(packing="whole", sequence_length=32), "train")


@pytest.mark.parametrize("packing", [{}, {"packing": "whole", "sequence_length": 64}])
def test_an_empty_split_says_why(make_store, tmp_path, packing):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("the same " * 100)
    store = make_store(input=(str(tmp_path / "*.txt"),), **packing)
    with pytest.raises(
        UserError, match="validation split .* is empty: all documents are identical"
    ):
        Sequences(
            store,
            DataConfig(sequence_length=64, packing=packing.get("packing", "split")),
            "validation",
        )
