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
    with pytest.raises(UserError, match=rf"{name} has {size - 2:,} bytes; .* says {size:,} bytes.*prepare"):
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
    with pytest.raises(UserError, match=r"train\.tokens has sha256 \w{64}, manifest\.json says \w{64}"):
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


@pytest.mark.parametrize("name", ["../train.tokens", "/etc/hostname", "sub/train.tokens", ".."])
def test_a_manifest_cannot_name_files_outside_of_its_folder(make_store, name):
    folder = make_store().folder
    values = json.loads((folder / "manifest.json").read_text())
    values["files"][name] = values["files"]["train.tokens"]
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="names files that are not in its folder"):
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
    with pytest.raises(ConfigError, match="vocab_size 258 is smaller than the 259 ids.*set model.vocab_size to 259"):
        check_vocabulary(store, ModelConfig(vocab_size=258))
