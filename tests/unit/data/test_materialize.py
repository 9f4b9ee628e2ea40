"""A Task or Mixture written once into a token store: the same bytes each time, what the stream has,
and no TensorFlow to read it.
"""

import collections
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import paxlike.data.materialize as materialize_file
from paxlike.config import ConfigError, DataConfig, TrainConfig, UserError
from paxlike.data.grain_source import TrainBatches, ValidationBatches
from paxlike.data.materialize import MaterializeConfig, materialize
from paxlike.data.seqio_mixture import Document, named
from paxlike.data.sequences import Sequences
from paxlike.data.store import open_store
from paxlike.data.tokenizer import BytesTokenizer

MODULE = str(Path(__file__).parents[2] / "seqio_tasks.py")
needs_seqio = pytest.mark.optional("seqio")
WHOLE = {"packing": "whole", "sequence_length": 48}


@pytest.fixture
def write(tmp_path):
    def write(name: str, mixture: str = "made_mixture", **fields):
        return materialize(
            MaterializeConfig(
                seqio_mixture=mixture, module=MODULE, output=str(tmp_path / name), **fields
            )
        )

    return write


def files(store) -> dict:
    return {path.name: path.read_bytes() for path in sorted(store.folder.iterdir())}


@needs_seqio
def test_twice_the_same_bytes(write, tmp_path):
    """Once here, once in a process of its own that hashes otherwise."""
    one = write("one", **WHOLE, examples=150)
    command = [
        sys.executable,
        "-m",
        "paxlike",
        "data",
        "materialize",
        "--seqio-mixture",
        "made_mixture",
        "--module",
        MODULE,
    ]
    flags = [
        "--output",
        str(tmp_path / "two"),
        "--packing",
        "whole",
        "--sequence-length",
        "48",
        "--examples",
        "150",
    ]
    done = subprocess.run(
        [*command, *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "77"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "reading the seqio mixture made_mixture: " in done.stderr and " documents, " in done.stderr
    )
    two = open_store(tmp_path / "two")
    two.verify()
    assert files(one) == files(two) and one.fingerprint == two.fingerprint
    assert write("three", **WHOLE, examples=150, seed=1).fingerprint != one.fingerprint


@needs_seqio
@pytest.mark.parametrize("fields", [{}, WHOLE])
@pytest.mark.parametrize("mixture", ["made_texts", "made_questions"])
def test_a_store_has_what_the_task_has(write, mixture, fields):
    store = write("store", mixture, **fields)
    opened = named(mixture, MODULE, fields.get("sequence_length"))
    documents = list(opened.documents("train"))
    with_split = mixture == "made_texts"
    told = store.manifest.splits
    assert told["train"].documents + (0 if with_split else told["validation"].documents) == len(
        documents
    )
    assert told["validation"].documents == (20 if with_split else 1)
    everything = documents + (list(opened.documents("validation")) if with_split else [])
    assert sum(told[split].tokens for split in told) == sum(
        len(document.tokens) for document in everything
    )
    texts = [opened.tokenizer.decode(document.tokens) for document in everything]
    assert sum(told[split].text_bytes for split in told) == sum(
        len(text.encode()) for text in texts
    )
    assert store.vocab_size == 259 and store.manifest.inputs[f"seqio:{mixture}/train"] == len(
        documents
    )
    if fields:
        return
    found = collections.Counter()
    for split in told:
        tokens, mask = store.tokens(split), store.loss_mask(split)
        assert (mask is None) == with_split, "a mask is only written where something is not learned"
        ends = np.flatnonzero(tokens == 1) + 1
        ends = ends if with_split else ends[1::2]  # inputs and targets each end with it
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            learned = np.ones(end - begin, np.uint8) if mask is None else mask[begin:end]
            found[tokens[begin:end].astype(np.int32).tobytes() + learned.tobytes()] += 1
    assert found == collections.Counter(
        document.tokens.tobytes() + document.learned.tobytes() for document in everything
    )


@needs_seqio
@pytest.mark.parametrize("fields", [{}, WHOLE])
def test_only_targets_are_predicted(write, fields):
    store = write("store", "made_questions", **fields)
    data = DataConfig(
        store=str(store.folder), sequence_length=48, packing=fields.get("packing", "split")
    )
    sequences = Sequences(store, data, "train")
    batch = sequences.read(range(len(sequences)))
    decode = store.tokenizer.decode
    learned, inputs = (
        batch.targets_BT[batch.targets_BT >= 0],
        batch.tokens_BT[:, 1:][batch.targets_BT[:, :-1] < 0],
    )
    assert len(learned) > 500 and decode(learned) == decode(learned).upper()
    assert decode(inputs) == decode(inputs).lower() and "alpha" in decode(inputs)
    whole = sequences.read([3, 1])
    assert np.array_equal(whole.targets_BT, batch.targets_BT[[3, 1]])


@needs_seqio
def test_a_mixture_can_be_as_long_as_asked_for(write):
    store = write("store", examples=500)
    assert sum(counts.documents for counts in store.manifest.splits.values()) == 500
    once = write("once")
    assert 60 <= sum(counts.documents for counts in once.manifest.splits.values()) < 120


@needs_seqio
def test_it_is_read_without_tensorflow(write):
    store = write("store", "made_questions", **WHOLE)
    program = f"""
import sys
from paxlike.config import DataConfig, TrainConfig
from paxlike.data.source import open_data, train_batches, validation_batches
data = DataConfig(store={str(store.folder)!r}, sequence_length=48, packing="whole")
source = open_data(data)
source.verify()
batch = train_batches(source, data, TrainConfig(batch_size=2)).read_batch(5)
validation_batches(source, data, TrainConfig(batch_size=2))[""].read_batch(0)
text = source.tokenizer.decode(batch.tokens_BT[0])
print(text[:1].isdigit(), *(name in sys.modules for name in ("tensorflow", "seqio")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["True", "False", "False"], done.stderr


@needs_seqio
def test_hosts_share_it(write):
    store = write("store", "made_texts")
    data = DataConfig(store=str(store.folder), sequence_length=32)
    batches = TrainBatches(store, data, TrainConfig(batch_size=8))
    whole = batches.read_batch(3)
    for rows in (np.arange(0, 8, 2), np.arange(1, 8, 2)):
        assert np.array_equal(batches.read_batch(3, rows).tokens_BT, whole.tokens_BT[rows])
    assert len(ValidationBatches(store, data, TrainConfig(batch_size=8))) > 1


@needs_seqio
def test_nothing_is_overwritten_nor_left_half_written(write, tmp_path):
    folder = write("store").folder
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(UserError, match="store already exists"):
        write("store")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(UserError, match="no seqio Task or Mixture 'another'"):
        write("none", "another")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": ""}, "name the folder to write"),
        ({"packing": "whole"}, "packing whole needs a --sequence-length"),
        ({"examples": -1}, "examples is -1"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
    ],
)
def test_flags_are_checked(fields, message):
    with pytest.raises(ConfigError, match=message):
        MaterializeConfig(
            **{"seqio_mixture": "mine", "module": "tasks.py", "output": "out", **fields}
        )


@pytest.mark.parametrize("fields", [{}, WHOLE])
def test_the_writing_itself_needs_no_seqio(write, monkeypatch, fields):
    """Documents from anywhere: so that this is tried where seqio is not installed, too."""

    class Documents:
        name, provider, vocab_size, tokenizer = (
            "the seqio mixture m",
            SimpleNamespace(splits=["train"]),
            259,
            BytesTokenizer(),
        )

        def documents(self, split, seed, epochs, sampled):
            for number in range(30):
                tokens = np.append(self.tokenizer.encode(f"{number} and {number}"), 1).astype(
                    np.int32
                )
                yield Document(tokens, np.arange(len(tokens)) > 3)

    monkeypatch.setattr(materialize_file, "named", lambda mixture, module, length: Documents())
    store = write("store", validation_fraction=0.2, **fields)
    store.verify()
    splits = store.manifest.splits
    assert (
        splits["train"].documents + splits["validation"].documents == 30
        and splits["validation"].documents > 0
    )
    data = DataConfig(
        store=str(store.folder), sequence_length=48, packing=fields.get("packing", "split")
    )
    batch = Sequences(store, data, "train").read([0])
    assert 0 < (batch.targets_BT >= 0).sum() < (batch.tokens_BT > 0).sum() - 4
