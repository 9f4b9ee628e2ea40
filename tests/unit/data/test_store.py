import json
import re

import numpy as np
import pytest

from paxlike.config import ConfigError, ModelConfig, UserError
from paxlike.data.source import check_unchanged, check_vocabulary
from paxlike.data.store import open_store


def test_opening_reads_what_was_written(make_store):
    store = open_store(make_store().folder)
    counts = store.manifest.splits
    for split in ("train", "validation"):
        tokens = store.tokens(split)
        assert tokens.dtype == np.uint16 and tokens.shape == (counts[split].tokens,)
        assert (tokens == store.manifest.eod).sum() == counts[split].documents > 0
    store.verify()


@pytest.mark.parametrize("name", ["train.tokens", "validation.tokens", "tokenizer.json"])
def test_a_file_cut_short_is_named_with_both_sizes(make_store, name):
    folder = make_store().folder
    path = folder / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(
        UserError, match=rf"{name} has {size - 2:,} bytes; .* says {size:,} bytes.*prepare"
    ):
        open_store(folder)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name} is missing.*{size:,} bytes"):
        open_store(folder)


def test_verify_finds_a_changed_byte(make_store):
    store = make_store()
    path = store.folder / "train.tokens"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        UserError, match=r"train\.tokens has sha256 \w{64}, manifest\.json says \w{64}"
    ):
        open_store(store.folder).verify()


def test_what_is_no_store_is_a_user_error(tmp_path, make_store):
    with pytest.raises(UserError, match="nowhere is not a token store.*paxlike data prepare"):
        open_store(tmp_path / "nowhere")
    folder = make_store().folder
    path = folder / "manifest.json"
    good = path.read_text()
    for bad, message in (
        (good[:-30], "cannot be read"),
        ("[]", "cannot be read"),
        (good.replace('"format": 1', '"format": 99'), "has format 99, this version reads 1"),
        (re.sub(r'"sha256": "\w', '"sha256": "x', good, count=1), "was edited"),
        (json.dumps({**json.loads(good), "packing": "whole"}), "was edited"),
        (json.dumps({**json.loads(good), "new": 1}), "cannot be read"),
    ):
        path.write_text(bad)
        with pytest.raises(UserError, match=message):
            open_store(folder)


IMPOSSIBLE = [
    ("tokenizer", "morse", "tokenizer is 'morse', not bytes or sentencepiece"),
    ("tokenizer", None, "tokenizer is None, not of type str"),
    ("tokenizer", "sentencepiece", "files has no tokenizer.model"),
    ("lossless", 1, "lossless is 1, not of type bool"),
    ("vocab_size", 0, "vocab_size is 0, not in 1"),
    ("vocab_size", -259, "vocab_size is -259"),
    ("vocab_size", 259.0, "vocab_size is 259.0, not a number of type int"),
    ("vocab_size", "259", "vocab_size is '259'"),
    ("vocab_size", 1 << 17, "vocab_size is 131072, not in 1 … 65536"),
    ("eod", 259, "eod is 259, not an id below vocab_size 259"),
    ("eod", -1, "eod is -1"),
    ("validation_fraction", 1.5, "validation_fraction is 1.5"),
    ("validation_fraction", -0.1, "validation_fraction is -0.1"),
    ("validation_fraction", float("nan"), "validation_fraction is nan"),
    ("validation_fraction", "0.2", "validation_fraction is '0.2'"),
    ("splits", {}, "splits are \\[\\]"),
    ("splits.train.documents", -1, "splits.train.documents is -1"),
    ("splits.train.documents", 0, "splits.train has .* tokens in 0 documents"),
    ("splits.train.documents", 10**9, "splits.train has .* tokens in 1000000000 documents"),
    ("splits.train.tokens", 1000, "files.train.tokens.bytes is .*; the counts give 2,000"),
    ("splits.validation.tokens", 1000.5, "splits.validation.tokens is 1000.5"),
    ("splits.train.text_bytes", -5, "splits.train.text_bytes is -5"),
    ("splits.train.text_bytes", 10**30, "splits.train.text_bytes is 1000"),
    ("splits.train.rows", 3, "splits.train.rows is 3 for packing split"),
    ("splits.train.efficiency", 0.5, "splits.train.efficiency is 0.5, not 1.0"),
    ("splits.train.efficiency", float("inf"), "splits.train.efficiency is inf"),
    ("files.tokenizer\\.json.bytes", -1, "files.tokenizer.json.bytes is -1"),
    ("files.tokenizer\\.json.bytes", None, "files.tokenizer.json.bytes is None"),
    ("inputs", [], "inputs is \\[\\], not of type dict"),
    ("inputs", {"a.txt": -1}, "inputs\\['a.txt'\\] is -1"),
    ("inputs", {"a.txt": "1"}, "inputs\\['a.txt'\\] is '1'"),
    ("bad_lines", {"null_text": {"count": 0, "first": []}}, "bad_lines.null_text has a count of 0"),
    ("bad_lines", {"null_text": {"count": 1, "first": [1]}}, "bad_lines.null_text"),
    ("bad_lines", {"null_text": {"count": 1, "first": "a"}}, "bad_lines.null_text.first is 'a'"),
    ("bad_lines", {"null_text": 3}, "cannot be read"),
    ("splits", [1], "cannot be read"),
]


def edit(folder, name, value):
    """Sets a dotted name in the manifest; \\. is a dot in a file's name."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    *parents, last = re.split(r"(?<!\\)\.", name)
    place = values
    for parent in parents:
        place = place[parent.replace("\\", "")]
    place[last] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(("name", "value", "message"), IMPOSSIBLE)
def test_impossible_values_in_the_manifest_are_a_user_error(make_store, name, value, message):
    folder = make_store().folder
    edit(folder, name, value)
    with pytest.raises(UserError, match=rf"manifest\.json .*{message}.*paxlike data prepare"):
        open_store(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("splits.train.rows", 1, "tokens in rows for 64"),
        ("splits.train.rows", 10**6, "splits.train.efficiency is"),
        ("splits.validation.efficiency", 1.2, "splits.validation.efficiency is 1.2"),
    ],
)
def test_impossible_rows_in_the_manifest_are_a_user_error(make_store, name, value, message):
    folder = make_store(packing="whole", sequence_length=64).folder
    edit(folder, name, value)
    with pytest.raises(UserError, match=message):
        open_store(folder)


def test_several_impossible_values_are_listed_together(make_store):
    folder = make_store().folder
    edit(folder, "eod", -1)
    edit(folder, "splits.train.text_bytes", -5)
    with pytest.raises(UserError, match=r"eod is -1.*; splits\.train\.text_bytes is -5"):
        open_store(folder)


def test_verify_finds_ids_outside_of_the_vocabulary(make_store):
    folder = make_store().folder
    largest = int(open_store(folder).tokens("train").max())
    edit(folder, "vocab_size", largest + 1)
    open_store(folder).verify()
    edit(folder, "vocab_size", largest)
    with pytest.raises(UserError, match=rf"train\.tokens has the id {largest}, but vocab_size"):
        open_store(folder).verify()


def test_a_store_whose_split_is_empty_is_valid(make_store, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("the same")
    for packing in ({}, {"packing": "whole", "sequence_length": 4}):
        name = packing.get("packing", "split")
        store = make_store(name, input=(f"{tmp_path}/*.txt",), **packing)
        assert store.manifest.splits["validation"].documents == 0
        open_store(store.folder).verify()


@pytest.mark.parametrize("name", ["../train.tokens", "/etc/hostname", "sub/train.tokens", ".."])
def test_a_manifest_cannot_name_files_outside_of_its_folder(make_store, name):
    folder = make_store().folder
    values = json.loads((folder / "manifest.json").read_text())
    values["files"][name] = values["files"]["train.tokens"]
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="names files that are not in its directory"):
        open_store(folder)


def test_fingerprint_is_of_the_content(make_store, text_folder):
    first = make_store("a")
    assert make_store("b").fingerprint == first.fingerprint
    assert open_store(first.folder).fingerprint == first.fingerprint
    assert make_store("c", packing="whole", sequence_length=64).fingerprint != first.fingerprint
    (text_folder / "00.txt").write_text("something else")
    changed = make_store("d")
    assert changed.fingerprint != first.fingerprint
    check_unchanged(first, first.fingerprint)
    with pytest.raises(UserError, match=f"{changed.fingerprint}.*{first.fingerprint}"):
        check_unchanged(changed, first.fingerprint)


def test_vocabulary_must_fit_the_model(make_store):
    store = make_store()
    check_vocabulary(store, ModelConfig(vocab_size=259))
    with pytest.raises(
        ConfigError, match="vocab_size 258 is smaller than the 259 ids.*set model.vocab_size to 259"
    ):
        check_vocabulary(store, ModelConfig(vocab_size=258))
