"""Interrupted preparation resumes; equal and short documents are dropped."""

import fcntl
import json
import shutil

import numpy as np
import pytest

from paxlike.config import ConfigError, UserError
from paxlike.data import blocks, partial, tokenize_files
from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.data.tokenize_files import Encoder


class Killed(BaseException):
    """As an end of the process: nothing handles it."""


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Two files of 40 blocks each; finished work is recorded every 8 blocks."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 200)
    monkeypatch.setattr(tokenize_files, "BLOCKS_PER_RECORD", 8)
    random = np.random.default_rng(0)
    for name in ("a.jsonl", "b.jsonl"):
        texts = ["".join(random.choice(list("abc d"), random.integers(1, 500))) for _ in range(30)]
        lines = [json.dumps({"text": text}) for text in texts]
        lines[7] = "{broken"
        (tmp_path / name).write_text("\n".join(lines))
    return tmp_path


def config(corpus, output="store", **more) -> PrepareConfig:
    return PrepareConfig(
        (str(corpus / "*.jsonl"),), str(corpus / output), tokenizer_vocab=270, skip_bad_lines=True,
        validation_fraction=0.3, **more,
    )  # fmt: skip


def interrupt(monkeypatch, after: int, error: type[BaseException] = Killed) -> list:
    """The encoder fails at its block `after`; returns the blocks that it encoded."""
    seen: list = []
    encode = Encoder.__call__

    def counted(self, block):
        if len(seen) == after:
            raise error
        seen.append(block)
        return encode(self, block)

    monkeypatch.setattr(Encoder, "__call__", counted)
    return seen


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt, UserError])
def test_finished_work_is_resumed(corpus, monkeypatch, capsys, error):
    whole = prepare(config(corpus, "whole"))
    with monkeypatch.context() as patch, pytest.raises(error):
        interrupt(patch, 21, error)
        prepare(config(corpus, workers=1))
    assert not (corpus / "store").exists()
    folder = corpus / ".store.partial"
    recorded = json.loads((folder / "journal.json").read_text())
    assert recorded["blocks"] % 8 == 0 and recorded["blocks"] > 0
    assert (folder / "tokens").stat().st_size >= recorded["tokens"]
    with monkeypatch.context() as patch:
        seen = interrupt(patch, -1)
        monkeypatch.setattr("paxlike.data.tokenizer.train_sentencepiece", None)  # not again
        resumed = prepare(config(corpus))
    assert "resuming after" in capsys.readouterr().err
    assert resumed.fingerprint == whole.fingerprint and len(seen) < 80 - recorded["blocks"] + 8
    assert resumed.manifest.bad_lines == whole.manifest.bad_lines
    assert resumed.manifest.bad_lines["broken_json"].count == 2
    assert not folder.exists()


def test_other_inputs_and_settings_start_over(corpus, monkeypatch, capsys):
    for change in ("file", "setting"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            interrupt(patch, 21)
            prepare(config(corpus))
        if change == "file":
            (corpus / "a.jsonl").write_text('{"text": "other"}\n' * 200)
        more = {"errors": "replace"} if change == "setting" else {}
        capsys.readouterr()
        prepare(config(corpus, **more))
        assert "resuming" not in capsys.readouterr().err
        for path in (corpus / "store").iterdir():
            path.unlink()
        (corpus / "store").rmdir()


def test_little_work_leaves_nothing_behind(corpus, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 3)
        prepare(config(corpus))
    assert sorted(path.name for path in corpus.iterdir()) == ["a.jsonl", "b.jsonl"]


def documents(store) -> list[str]:
    text = "".join(
        store.tokenizer.decode(part.tolist()) + "|"
        for split in ("train", "validation")
        for part in np.split(
            store.tokens(split), np.flatnonzero(store.tokens(split) == store.manifest.eod) + 1
        )[:-1]
    )
    return sorted(text.split("|")[:-1])


@pytest.mark.parametrize(
    ("options", "kept", "dropped"),
    [
        ({}, ["a", "aa", "aa", "aa", "bbb", "cccccc"], {}),
        ({"deduplicate": True}, ["a", "aa", "bbb", "cccccc"], {"duplicate": 2}),
        ({"min_bytes": 2}, ["aa", "aa", "aa", "bbb", "cccccc"], {"too_short": 1}),
        ({"max_bytes": 3}, ["a", "aa", "aa", "aa", "bbb"], {"too_long": 1}),
        (
            {"deduplicate": True, "min_bytes": 2, "max_bytes": 5},
            ["aa", "bbb"],
            {"too_short": 1, "too_long": 1, "duplicate": 2},
        ),
    ],
)
@pytest.mark.parametrize("packing", ["split", "whole"])
def test_documents_that_are_dropped(tmp_path, options, kept, dropped, packing):
    texts = ["aa", "a", "aa", "cccccc", "bbb", "aa"]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    length = 8 if packing == "whole" else 0
    made = PrepareConfig(
        (str(tmp_path / "a.jsonl"),), str(tmp_path / "store"), tokenizer="bytes",
        validation_fraction=0.4, packing=packing, sequence_length=length, **options,
    )  # fmt: skip
    store = prepare(made)
    assert store.manifest.dropped == dropped
    counts = store.manifest.splits.values()
    assert sum(split.documents for split in counts) == len(kept)
    assert sum(split.text_bytes for split in counts) == sum(map(len, kept))
    if packing == "split":
        assert documents(store) == kept
    assert min(split.documents for split in counts) > 0


def test_limits_that_keep_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n{"text": "de"}\n')
    with pytest.raises(ConfigError, match="min_bytes 9 is above max_bytes 3"):
        PrepareConfig(("a",), "b", min_bytes=9, max_bytes=3)
    made = PrepareConfig(
        (str(tmp_path / "a.jsonl"),), str(tmp_path / "store"), tokenizer="bytes", min_bytes=9
    )
    with pytest.raises(UserError, match=r"no document is kept \(2 too short\)"):
        prepare(made)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_two_processes_work_on_one_output(tmp_path, monkeypatch):
    """The second has its own directory; one that is removed while it is locked is made again."""
    with partial.partial_work(tmp_path / "store", "a") as first:
        with partial.partial_work(tmp_path / "store", "a") as second:
            assert first.folder != second.folder and second.folder.is_dir()
    assert list(tmp_path.iterdir()) == []
    lock, calls = fcntl.flock, []

    def finished_meanwhile(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            shutil.rmtree(tmp_path / ".store.partial")
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", finished_meanwhile)
    with partial.partial_work(tmp_path / "store", "a") as work:
        assert (work.folder / "lock").is_file() and len(calls) == 2
