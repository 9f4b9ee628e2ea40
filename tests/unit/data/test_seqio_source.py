"""Tasks and Mixtures of seqio as documents and batches, compared with what seqio's own converter
makes of them.
"""

import collections
import itertools
from pathlib import Path

import numpy as np
import pytest

from paxlike.config import ConfigError, DataConfig, ModelConfig, TrainConfig, UserError
from paxlike.data import seqio_batches, seqio_source
from paxlike.data.seqio_mixture import named
from paxlike.data.source import check_vocabulary, open_data, train_batches, validation_batches

MODULE = str(Path(__file__).parents[2] / "seqio_tasks.py")
RAMP = TrainConfig(batch_size=8, batch_ramp=((2, 3), (4, 5)))
needs_seqio = pytest.mark.optional("seqio")


def data_of(mixture: str, **fields) -> DataConfig:
    return DataConfig(
        **{"seqio_mixture": mixture, "module": MODULE, "sequence_length": 48, **fields}
    )


def equal(one, two) -> bool:
    return all(
        (a is None and b is None) or np.array_equal(a, b) for a, b in zip(one, two, strict=True)
    )


def converted(mixture: str, split: str, pack: bool = False) -> list[dict]:
    """What seqio's own converter makes of a split, in its order."""
    import seqio

    task = seqio.get_mixture_or_task(mixture)
    lengths = dict.fromkeys(task.output_features, 512)
    dataset = task.get_dataset(lengths, split, shuffle=False, num_epochs=1)
    return list(seqio.DecoderFeatureConverter(pack=pack)(dataset, lengths).as_numpy_iterator())


@needs_seqio
@pytest.mark.parametrize("mixture", ["made_texts", "made_questions"])
def test_documents_are_what_seqios_converter_makes(mixture):
    opened = named(mixture, MODULE, 512)
    theirs = converted(mixture, "train")
    documents = list(opened.documents("train"))
    assert len(documents) == len(theirs) >= 60
    for document, example in zip(documents, theirs, strict=True):
        count = len(document.tokens)
        assert np.array_equal(document.tokens, example["decoder_target_tokens"][:count])
        assert np.array_equal(document.learned, example["decoder_loss_weights"][:count] == 1)
        assert not example["decoder_target_tokens"][count:].any() and document.tokens[-1] == 1


@needs_seqio
def test_whole_rows_predict_what_seqios_packed_rows_predict():
    """Every example in one segment; the learned tokens of each, and nothing else, are targets."""

    theirs = converted("made_questions", "train", pack=True)
    for row in theirs:
        row["decoder_target_tokens"] = np.where(
            row["decoder_loss_weights"] == 1, row["decoder_target_tokens"], -1
        )
    ours = [
        row._asdict()
        for row in seqio_batches.whole_rows(
            named("made_questions", MODULE, 512).documents("train"), 1024
        )
    ]
    assert (
        max(row["segments"].max() for row in ours) > 1
        and max(row["decoder_segment_ids"].max() for row in theirs) > 1
    )

    def predicted(rows, targets, segments):
        found = collections.Counter()
        for row in rows:
            for number in range(1, row[segments].max() + 1):
                values = row[targets][row[segments] == number]
                found[values[values >= 0].tobytes()] += 1
        return found

    assert predicted(ours, "targets", "segments") == predicted(
        theirs, "decoder_target_tokens", "decoder_segment_ids"
    )


@needs_seqio
@pytest.mark.parametrize("packing", ["split", "whole"])
def test_rows_hold_every_document_once(packing):
    documents = list(named("made_questions", MODULE, None).documents("train"))
    rows = list(seqio_batches.packed(documents, data_of("made_questions", packing=packing)))
    assert all(
        row.tokens.shape == row.targets.shape == (48,) and row.tokens.dtype == np.int32
        for row in rows
    )
    learned = sum(int(document.learned[1:].sum()) for document in documents)
    assert sum(int((row.targets >= 0).sum()) for row in rows) == learned
    if packing == "split":
        stream = np.concatenate([document.tokens for document in documents])
        assert np.array_equal(
            np.concatenate([row.tokens for row in rows])[: len(stream) - 1], stream[:-1]
        )
        mask = np.concatenate([document.learned for document in documents])[1:]
        targets = np.concatenate([row.targets for row in rows])[: len(mask)]
        assert np.array_equal(targets, np.where(mask, stream[1:], -1))
    else:
        pieces = [
            row.tokens[row.segments == n] for row in rows for n in range(1, row.segments.max() + 1)
        ]
        assert sorted(map(bytes, pieces)) == sorted(
            bytes(document.tokens) for document in documents
        )
        assert sum(len(piece) for piece in pieces) > 0.8 * 48 * len(rows), (
            "the rows should be well filled"
        )


@needs_seqio
@pytest.mark.parametrize("packing", ["split", "whole"])
def test_batch_k_depends_on_the_seed_and_k_alone(packing):
    data = data_of("made_mixture", packing=packing)
    batches = train_batches(open_data(data), data, RAMP)
    first = list(itertools.islice(batches.batches(), 12))
    assert [len(batch.tokens_BT) for batch in first] == [2, 2, 2, 4, 4, 8, 8, 8, 8, 8, 8, 8]
    for start in (0, 4, 9):
        assert all(map(equal, batches.batches(start), first[start:]))
    skipping = batches.batches(3, number=lambda k: k + 2 if k > 3 else k)
    assert [equal(next(skipping), first[k]) for k in (3, 6, 7)] == [True] * 3
    halves = [batches.batches(5, lambda size, h=h: np.arange(h, size, 2)) for h in (0, 1)]
    for k in (5, 6):
        for half, host in enumerate(halves):
            part = next(host)
            assert np.array_equal(part.tokens_BT, first[k].tokens_BT[half::2])
            assert np.array_equal(part.targets_BT, first[k].targets_BT[half::2])
    other = data_of("made_mixture", packing=packing, seed=1)
    assert not equal(next(train_batches(open_data(other), other, RAMP).batches(5)), first[5])


@needs_seqio
def test_a_mixture_keeps_its_rates():
    """few_words has one word, many_words one to eight of them, three to one."""
    documents = itertools.islice(named("made_mixture", MODULE, None).training(0), 2000)
    many = np.mean([bytes(document.tokens - 3).count(b" \0\0\0"[:1]) > 4 for document in documents])
    expected = 0.25 * np.mean([words > 1 for words in range(1, 9)])
    assert abs(many - expected) < 0.04


@needs_seqio
def test_validation_is_a_split_or_held_out():
    data, train = data_of("made_texts"), TrainConfig(batch_size=4)
    opened = open_data(data)
    assert opened.held_out == 0 and len(list(opened.validation())) == 20
    (validation,) = validation_batches(opened, data, train).values()
    read = list(validation.batches(100))
    assert [equal(a, b) for a, b in zip(read, validation.batches(100), strict=True)] == [
        True
    ] * len(read)
    assert len(list(validation.batches(2))) == 2
    predicted = sum(int((batch.targets_BT >= 0).sum()) for batch in read)
    assert predicted == sum(len(document.tokens) for document in opened.validation()) - 1

    data = data_of("made_questions")
    opened = open_data(data)
    kept = {document.hash for document in opened.validation()}
    trained = {document.hash for document in itertools.islice(opened.training(0), 300)}
    assert kept and trained and not kept & trained
    assert kept | trained == {document.hash for document in opened.documents("train")}
    assert next(validation_batches(opened, data, train)[""].batches(1)).tokens_BT.shape == (4, 48)


@needs_seqio
def test_the_fingerprint_is_of_the_content(tmp_path):
    prints = []
    for number, count in ((0, 3), (1, 3), (2, 4)):
        module = tmp_path / f"tasks_{number}.py"
        module.write_text(
            TASK.format(
                name=f"printed_{number}", texts=[f"text {n}" for n in range(count)], features=""
            )
        )
        prints.append(open_data(data_of(f"printed_{number}", module=str(module))))
    assert len({opened.fingerprint for opened in prints}) == 3, "name and content belong to it"
    assert (
        open_data(data_of("printed_2", module=str(tmp_path / "tasks_2.py"), seed=9)).fingerprint
        == prints[2].fingerprint
    )


TASK = """
import seqio, tensorflow as tf

def source(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices(
        {{"targets": {texts}, "inputs": {texts}, "extra": {texts}}}
    )

seqio.TaskRegistry.add(
    "{name}", source=seqio.FunctionDataSource(source, splits=["train"]),
    preprocessors=[seqio.preprocessors.tokenize],
    output_features={{"targets": seqio.Feature(seqio.ByteVocabulary()), {features}}},
)
"""


@needs_seqio
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("broken", "import nowhere_at_all", r"broken.py: ModuleNotFoundError.*nowhere_at_all"),
        ("nothing", "", "no seqio Task or Mixture 'nothing' is registered"),
        (
            "extra",
            TASK.replace("{features}", '"extra": seqio.Feature(seqio.ByteVocabulary())'),
            r"\['extra', 'targets'\]; a decoder",
        ),
        (
            "passed",
            TASK.replace("ByteVocabulary()", "PassThroughVocabulary(9)"),
            "PassThroughVocabulary has no tokenizer",
        ),
        (
            "two",
            TASK.replace("{features}", '"inputs": seqio.Feature(seqio.ByteVocabulary(3))'),
            "another vocabulary",
        ),
        (
            "untokenized",
            TASK.replace("[seqio.preprocessors.tokenize]", "[]"),
            "untokenized.*(tokenize|cannot be read)",
        ),
        (
            "failing",
            TASK.replace("return tf", "return 1 / 0; tf"),
            "seqio mixture failing cannot be read: ZeroDivisionError",
        ),
        ("empty", TASK.replace('"train"', '"test"'), r"no split 'train'; there are \['test'\]"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, message):
    module = tmp_path / f"{name}.py"
    module.write_text(
        text.replace("{features}", "").format(name=name, texts=["one", "two"])
        if "{name}" in text
        else text
    )
    with pytest.raises(UserError, match=message):
        open_data(data_of(name, module=str(module)))


@needs_seqio
def test_near_names_are_told():
    with pytest.raises(
        UserError, match="'made_mixtures' is registered; registered are made_mixture, "
    ):
        open_data(data_of("made_mixtures"))
    with pytest.raises(UserError, match="no Python file .*nowhere.py"):
        open_data(data_of("made_mixture", module="nowhere.py"))


@needs_seqio
def test_ids_must_fit(monkeypatch):
    opened = open_data(data_of("made_texts"))
    check_vocabulary(opened, ModelConfig(vocab_size=259))
    with pytest.raises(
        ConfigError,
        match="vocab_size 258 is smaller than the 259 ids.*the seqio mixture made_texts",
    ):
        check_vocabulary(opened, ModelConfig(vocab_size=258))
    with pytest.raises(UserError, match="ids from 1 to 259, but its vocabulary has 259"):
        opened._document({"targets": np.array([259, 4])})
    for wrong in (np.zeros((2, 2), int), np.zeros(3), "text"):
        with pytest.raises(UserError, match="'targets' that is not a row of token ids"):
            opened._document({"targets": wrong})


def test_a_stream_that_ends_is_an_error(capsys, monkeypatch):
    rows = iter([seqio_batches.Row(np.zeros(4), np.zeros(4), None)] * 3)
    monkeypatch.setattr(seqio_batches, "SECONDS_PER_LINE", 0)
    seqio_batches._drop(rows, 2, "the seqio mixture m")
    assert (
        "skipping sequences of the seqio mixture m that the run has read: 2 of 2"
        in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="the seqio mixture m ended after 1 sequences"):
        seqio_batches._drop(rows, 2, "the seqio mixture m")


def test_without_seqio_the_extra_is_named(monkeypatch):
    seqio_source.libraries.cache_clear()
    monkeypatch.setattr(seqio_source.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"seqio, which is not installed: pip install 'paxlike\[seqio\]'"
    ):
        open_data(data_of("anything"))
    seqio_source.libraries.cache_clear()


def test_a_config_names_one_source_and_its_module():
    with pytest.raises(ConfigError, match="set only one of them"):
        DataConfig(store="data/mine", seqio_mixture="mine", module="tasks.py")
    for given in ({"seqio_mixture": "mine"}, {"module": "tasks.py"}):
        with pytest.raises(ConfigError, match="give both"):
            DataConfig(**given)
