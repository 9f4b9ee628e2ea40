import bz2
import json

import numpy as np
import pytest

from paxlike.config import ConfigError, UserError
from paxlike.data import blocks, writer
from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.data.store import open_store
from paxlike.data.tokenize_files import in_order

from .conftest import AWKWARD, source_text


def texts_of(store, split):
    """The documents of a split of packing split, as texts."""
    tokens = store.tokens(split)
    ends = np.flatnonzero(tokens == store.manifest.eod)
    assert len(tokens) == 0 or ends[-1] == len(tokens) - 1
    return [store.tokenizer.decode(part) for part in np.split(tokens, ends)[:-1]]


@pytest.mark.parametrize("settings", [{}, {"tokenizer": "sentencepiece", "tokenizer_vocab": 350}])
def test_every_document_is_in_one_split_exactly(make_store, text_folder, settings):
    for number, text in enumerate(AWKWARD):
        (text_folder / f"x{number:02}.txt").write_text(text, newline="")
    store = make_store(**settings)
    found = texts_of(store, "train") + texts_of(store, "validation")
    assert sorted(found) == sorted(
        [*(text for text in AWKWARD if text), *(source_text(n) for n in range(12))]
    )
    splits = store.manifest.splits
    assert sum(counts.text_bytes for counts in splits.values()) == sum(
        len(text.encode()) for text in found
    )
    assert len(store.manifest.inputs) == 12 + len(AWKWARD)


def test_order_is_that_of_the_files(make_store):
    numbers = [int(text.split()[2]) for text in texts_of(make_store(), "train")]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("packing", [{}, {"packing": "whole", "sequence_length": 50}])
def test_the_number_of_workers_and_the_blocks_change_nothing(
    make_store, tmp_path, monkeypatch, sentencepiece_tokenizer, packing
):
    lines = "".join(json.dumps({"text": source_text(n, 90)}) + "\n" for n in range(100, 130))
    (tmp_path / "texts" / "lines.jsonl").write_text(lines)
    sentencepiece_tokenizer.save(tmp_path)
    settings = {
        "input": (f"{tmp_path}/texts/*",), "tokenizer": "sentencepiece",
        "tokenizer_model": str(tmp_path / "tokenizer.model"), **packing,
    }  # fmt: skip
    first = make_store("a", workers=1, **settings)
    assert (
        first.manifest.splits["train"].documents + first.manifest.splits["validation"].documents
        == 42
    )
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 200)
    for workers in (1, 3):
        assert (
            make_store(f"b{workers}", workers=workers, **settings).fingerprint == first.fingerprint
        )


def test_training_the_tokenizer_is_part_of_the_same_result(make_store):
    settings = {"tokenizer": "sentencepiece", "tokenizer_vocab": 320}
    fingerprints = {
        make_store(f"s{workers}", workers=workers, **settings).fingerprint for workers in (1, 2)
    }
    assert len(fingerprints) == 1
    assert make_store("less", **settings, tokenizer_sample=6000).fingerprint not in fingerprints


def test_equal_documents_land_together(make_store, text_folder):
    for number in range(12):
        (text_folder / f"copy{number}.txt").write_text(source_text(number), newline="")
    store = make_store()
    train, validation = set(texts_of(store, "train")), set(texts_of(store, "validation"))
    assert not train & validation
    assert len(train) + len(validation) == 12


@pytest.mark.parametrize("fraction", [1e-6, 1 - 1e-6])
def test_each_split_has_a_document(make_store, fraction):
    splits = make_store(validation_fraction=fraction).manifest.splits
    assert splits["train"].documents >= 1 and splits["validation"].documents >= 1


@pytest.mark.parametrize("settings", [{}, {"packing": "whole", "sequence_length": 64}])
def test_the_end_of_a_single_document_is_for_validation(make_store, text_folder, settings, capsys):
    store = make_store(input=(str(text_folder / "00.txt"),), validation_fraction=0.25, **settings)
    splits = store.manifest.splits
    total = sum(counts.tokens for counts in splits.values())
    assert splits["validation"].tokens == round(total / 4)
    assert (
        sum(counts.text_bytes for counts in splits.values())
        == (text_folder / "00.txt").stat().st_size
    )
    if not settings:
        joined = np.concatenate([store.tokens("train"), store.tokens("validation")])
        assert store.tokenizer.decode(joined[:-1]) == (text_folder / "00.txt").read_text()
    assert "its end is used for validation" in capsys.readouterr().err


def test_copies_of_one_document_leave_nothing_for_validation(
    make_store, text_folder, tmp_path, capsys
):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("the same")
    splits = make_store(input=(str(tmp_path / "*.txt"),)).manifest.splits
    assert (splits["train"].documents, splits["validation"].documents) == (2, 0)
    assert "the validation split is empty" in capsys.readouterr().err


def test_whole_rows_hold_every_document(make_store):
    store = make_store(packing="whole", sequence_length=100)
    for split in ("train", "validation"):
        tokens, segments, counts = (
            store.tokens(split),
            store.segments(split),
            store.manifest.splits[split],
        )
        assert tokens.shape == segments.shape == (counts.rows, 100)
        assert (segments > 0).sum() == counts.tokens
        assert counts.efficiency == pytest.approx(counts.tokens / tokens.size, abs=1e-6)
        assert counts.efficiency > 0.9
    streams = make_store("split")
    for split in ("train", "validation"):
        whole, stream = store.tokens(split), streams.tokens(split)
        assert np.array_equal(np.sort(whole[store.segments(split) > 0]), np.sort(stream))


def test_large_vocabularies_take_four_bytes(make_store, monkeypatch):
    assert make_store("a").tokens("train").dtype == np.uint16
    monkeypatch.setattr("paxlike.data.tokenizer.BytesTokenizer.vocab_size", 70_000)
    store = make_store("b")
    assert store.tokens("train").dtype == np.uint32
    assert len(texts_of(store, "train")) == store.manifest.splits["train"].documents


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_corpus_is_a_user_error(tmp_path, make_store, content):
    (tmp_path / "empty.jsonl").write_text(content)
    with pytest.raises(
        UserError, match=r"the corpus is empty: there is no text in the 1 file .*empty\.jsonl"
    ):
        make_store(input=(str(tmp_path / "empty.jsonl"),))
    assert not (tmp_path / "store").exists()


def test_an_error_in_a_file_leaves_nothing_behind(tmp_path, make_store, text_folder):
    (text_folder / "05.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"05\.txt is not UTF-8: byte 0xff at offset 0"):
        make_store()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts"]
    assert make_store(errors="replace").manifest.splits["train"].documents > 5


def write_bad_lines(folder):
    lines = [json.dumps({"text": source_text(n)}) for n in range(40)]
    for number in range(3, 38, 5):
        lines[number] = '{"text": null}'
    lines[10], lines[12], lines[20] = '{"text": ', "[]", '{"text": 5}'
    (folder / "a.jsonl").write_text("\n".join(lines[:30]))
    (folder / "b.jsonl").write_bytes("\n".join(lines[30:]).encode() + b'\n{"text": "\xff"}\n')
    return len(lines) - 7 - 3


BAD = {
    "null_text": (7, ["a.jsonl:4", "a.jsonl:9", "a.jsonl:14", "a.jsonl:19", "a.jsonl:24"]),
    "broken_json": (1, ["a.jsonl:11"]),
    "missing_field": (1, ["a.jsonl:13"]),
    "not_a_string": (1, ["a.jsonl:21"]),
    "not_utf8": (1, ["b.jsonl:11"]),
}


def test_bad_lines_are_skipped_and_listed_in_the_manifest(
    make_store, tmp_path, monkeypatch, capsys
):
    good = write_bad_lines(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = {"input": ("*.jsonl",), "skip_bad_lines": True}
    store = make_store("a", workers=1, **settings)
    error = capsys.readouterr().err
    assert (
        "skipped 11 bad lines: 1 broken json (a.jsonl:11); 1 missing field (a.jsonl:13); "
        "1 not a string (a.jsonl:21); 1 not utf8 (b.jsonl:11); 7 null text (a.jsonl:4, "
    ) in error
    found = {kind: (bad.count, bad.first) for kind, bad in store.manifest.bad_lines.items()}
    assert found == BAD
    assert sum(counts.documents for counts in store.manifest.splits.values()) == good
    assert open_store(store.folder).manifest == store.manifest
    written = json.loads((store.folder / "manifest.json").read_text())["bad_lines"]
    assert written["not_utf8"] == {"count": 1, "first": ["b.jsonl:11"]}
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    manifests = {
        (make_store(name, workers=workers, **settings).folder / "manifest.json").read_bytes()
        for name, workers in (("b", 1), ("c", 3))
    }
    assert manifests == {(store.folder / "manifest.json").read_bytes()}


def test_a_skipped_line_is_not_in_the_sample_of_the_tokenizer(make_store, tmp_path):
    write_bad_lines(tmp_path)
    settings = {"input": (f"{tmp_path}/*.jsonl",), "tokenizer": "sentencepiece"}
    with pytest.raises(UserError, match="jsonl:4: null text"):
        make_store("a", **settings, tokenizer_vocab=320)
    make_store("b", **settings, tokenizer_vocab=320, skip_bad_lines=True).verify()


def test_a_bad_line_is_an_error_by_default_and_leaves_nothing(make_store, tmp_path):
    write_bad_lines(tmp_path)
    with pytest.raises(
        UserError,
        match=r"a\.jsonl:4: null text: field 'text' is null\..*or skip bad lines with "
        "--skip-bad-lines",
    ):
        make_store(input=(f"{tmp_path}/*.jsonl",))
    assert not (tmp_path / "store").exists()


def test_without_bad_lines_the_manifest_does_not_mention_them(make_store, capsys):
    store, skipping = make_store("a"), make_store("b", skip_bad_lines=True)
    one, two = ((s.folder / "manifest.json").read_bytes() for s in (store, skipping))
    assert one == two and b'"bad_lines"' not in one
    assert "bad line" not in capsys.readouterr().err


def test_a_corpus_of_bad_lines_only_is_empty(make_store, tmp_path):
    (tmp_path / "a.jsonl").write_text("[\n" * 7)
    with pytest.raises(
        UserError, match=r"the corpus is empty.*\(skipped 7 bad lines: 7 broken json"
    ):
        make_store(input=(f"{tmp_path}/a.jsonl",), skip_bad_lines=True)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("packing", [{}, {"packing": "whole", "sequence_length": 50}])
def test_formats_of_the_same_documents_make_the_same_files(make_store, tmp_path, packing):
    texts = [source_text(number) for number in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    quoted = "".join('{},"{}"\n'.format(n, t.replace('"', '""')) for n, t in enumerate(texts))
    plain = "\ufeffid,text\n" + quoted
    (tmp_path / "a.csv").write_text(plain)
    (tmp_path / "a.csv.bz2").write_bytes(bz2.compress(plain.encode()))
    stores = [
        prepare(
            PrepareConfig(
                input=(f"{tmp_path}/{name}",),
                output=str(tmp_path / f"{name}-store"),
                tokenizer="bytes",
                **packing,
            )
        )
        for name in ("a.jsonl", "a.csv", "a.csv.bz2")
    ]
    assert len({store.fingerprint for store in stores}) == 1


@pytest.mark.parametrize("exception", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing_behind(tmp_path, make_store, monkeypatch, exception):
    def interrupted(*_):
        raise exception

    monkeypatch.setattr(writer, "write_streams", interrupted)
    expected = UserError if isinstance(exception, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        make_store()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts"]


def test_an_existing_output_is_a_user_error(make_store):
    store = make_store()
    before = store.fingerprint
    with pytest.raises(
        UserError, match="store already exists and is not overwritten. Remove it, or choose another"
    ):
        make_store(tokenizer="sentencepiece")
    assert make_store("again").fingerprint == before


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"input": ()}, "--input"),
        ({"output": ""}, "--output"),
        ({"packing": "whole"}, "sequence_length is 0 for packing 'whole'"),
        ({"sequence_length": 5}, "sequence_length is 5 for packing 'split'"),
        ({"tokenizer": "bytes", "tokenizer_model": "x.model"}, "x.model"),
        ({"validation_fraction": 0.0}, "validation_fraction is 0.0"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"workers": -1}, "workers is -1"),
        ({"tokenizer_vocab": 0}, "tokenizer_vocab is 0"),
    ],
)
def test_settings_that_cannot_work(fields, message):
    with pytest.raises(ConfigError, match=message):
        PrepareConfig(**{"input": ("x",), "output": "y", **fields})


def test_a_pattern_without_files_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no file matches"):
        prepare(PrepareConfig(input=(f"{tmp_path}/*.txt",), output=str(tmp_path / "out")))


def test_in_order_keeps_order_and_stays_near():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    for position, result in enumerate(in_order(lambda item: item * item, items(), 3)):
        assert result == position**2
        assert len(taken) <= position + 2 * 3 + 1


def test_in_order_passes_on_the_error_of_a_worker():
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda item: 1 // (5 - item), range(100), 2))
