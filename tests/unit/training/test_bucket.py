"""Run directories and stores in a bucket: real clients (gcsfs, TensorStore, Orbax), fake server."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from fake_bucket import FakeBuckets
from programs import environment

from paxlike.config import ProfileConfig, UserError, WatchdogConfig
from paxlike.data.location import fetched, in_bucket, located
from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.data.store import open_store
from paxlike.training.loaded_run import evaluate_run, load_run
from paxlike.training.loop import train
from paxlike.training.watchdog import Watchdog

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def buckets(tmp_path_factory):
    served = FakeBuckets()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in served.env.items():
            patch.setenv(name, value)
        yield served
    served.close()


def losses(text: str) -> dict[int, float]:
    lines = [json.loads(line) for line in text.splitlines()]
    return {line["step"]: line["loss"] for line in lines if "event" not in line}


def test_a_run_in_a_bucket_equals_the_run_on_disk(buckets, config, change, tmp_path):
    config = change(config, "log.tensorboard", True)
    whole = train(config, tmp_path / "whole")
    there = located("gs://runs/team/first")
    train(change(config, "train.steps", 4), there)
    assert buckets.names("runs") and not (tmp_path / "gs:").exists()
    buckets_after_four = set(buckets.names("runs"))
    again = train(config, there)
    assert losses((there / "metrics.jsonl").read_text()) == losses(
        (tmp_path / "whole" / "metrics.jsonl").read_text()
    )
    assert again.evaluation == whole.evaluation
    # keep=2 applies in the bucket too, and each remaining checkpoint is marked as complete.
    marks = {
        name
        for name in buckets.names("runs")
        if name.endswith("commit_success.txt") and name.count("/") == 4
    }
    assert marks == {f"team/first/checkpoints/{step}/commit_success.txt" for step in (4, 6)}
    assert "team/first/checkpoints/2/commit_success.txt" in buckets_after_four
    assert any(name.startswith("team/first/tensorboard/events") for name in buckets.names("runs"))
    run = load_run(there, config.mesh)
    found = evaluate_run(run, there, 2)
    assert (run.step, found["loss"]) == (6, whole.evaluation["loss"])


def test_an_incomplete_checkpoint_is_not_used(buckets, config, capsys):
    there = located("gs://runs/cut")
    train(config, there)
    mark = buckets.objects.pop(("runs", "cut/checkpoints/6/commit_success.txt"))
    assert load_run(there, config.mesh).step == 4
    # Marked as complete, but corrupted: it is renamed, and the run resumes from the previous one.
    for name in buckets.names("runs"):
        if name.startswith("cut/checkpoints/6/state/") and "/d/" in name:
            buckets.objects["runs", name] = b"corrupted"
    buckets.objects["runs", "cut/checkpoints/6/commit_success.txt"] = mark
    train(config, there)
    assert "checkpoint 6 cannot be read" in capsys.readouterr().out
    assert any(name.startswith("cut/checkpoints/6.unreadable/") for name in buckets.names("runs"))
    assert load_run(there, config.mesh).step == 6


def test_a_store_in_a_bucket_is_copied_into_the_cache_once(
    buckets, config, store, tmp_path, monkeypatch
):
    monkeypatch.setenv("PAXLIKE_CACHE", str(tmp_path))
    for path in store.rglob("*"):
        if path.is_file():
            buckets.objects["data", f"mine/{path.relative_to(store).as_posix()}"] = (
                path.read_bytes()
            )
    opened = open_store("gs://data/mine")
    assert not in_bucket(opened.folder) and opened.fingerprint == open_store(store).fingerprint
    opened.verify()
    np.testing.assert_array_equal(opened.tokens("train"), open_store(store).tokens("train"))
    before = (opened.folder / "train.tokens").stat()
    assert (open_store("gs://data/mine").folder / "train.tokens").stat().st_ino == before.st_ino
    del buckets.objects["data", "mine/train.tokens"]
    shutil.rmtree(opened.folder)
    with pytest.raises(UserError, match="train.tokens is missing"):
        open_store("gs://data/mine")


def test_a_manifest_cannot_write_outside_the_cache(buckets, tmp_path, monkeypatch):
    monkeypatch.setenv("PAXLIKE_CACHE", str(tmp_path / "cache"))
    buckets.objects["data", "evil/../../out"] = b"x"
    with pytest.raises(UserError, match="not in it"):
        fetched(located("gs://data/evil"), {"../../out": 1}, "evil")
    assert not list(tmp_path.rglob("out"))


def test_profiles_cannot_be_written_to_a_bucket(buckets, config):
    traced = dataclasses.replace(config, profile=ProfileConfig(start=1, steps=1))
    with pytest.raises(UserError, match="gs://runs/traced.*local --run-dir"):
        train(traced, located("gs://runs/traced"))


def test_two_processes_share_a_run_in_a_bucket(buckets, store, tmp_path):
    flags = [
        "--model.layers", "1", "--model.d-model", "32", "--model.d-ff", "64",
        "--train.steps", "2", "--train.batch-size", "4", "--data.store", str(store),
        "--data.sequence-length", "32", "--optim.warmup-steps", "1", "--eval.batches", "1",
        "--log.sample", "",
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[3]
    launcher = [sys.executable, str(root / "launch" / "local.py"), "--hosts", "2"]
    config = str(root / "configs" / "tiny.py")
    done = subprocess.run(
        [*launcher, "--devices-per-host", "1", config, "--run-dir", "gs://runs/two", *flags],
        env=environment(PAXLIKE_CACHE=str(tmp_path)),
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = buckets.names("runs")
    assert "two/checkpoints/2/commit_success.txt" in names
    # Both processes have written their shards.
    assert {f"two/checkpoints/2/state/ocdbt.process_{k}/manifest.ocdbt" for k in (0, 1)} <= set(
        names
    )
    assert sorted(losses(buckets.objects["runs", "two/metrics.jsonl"].decode())) == [1, 2]


def test_stack_traces_of_a_hang_are_not_written_to_the_bucket(buckets, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = buckets.names("runs")
    Watchdog(WatchdogConfig(), located("gs://runs/hung")).write_stacks()
    (written,) = tmp_path.rglob("process-0.txt")
    assert "write_stacks" in written.read_text() and buckets.names("runs") == before


def test_located(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located("runs/a") == tmp_path / "runs" / "a"
    # pathlib.Path removes one slash of a bucket's URL.
    assert str(located("gs:/b/run")) == str(located("gs://b/run")) == "gs://b/run" and in_bucket(
        located("gs://b")
    )
    with pytest.raises(UserError, match="hdfs"):
        located("hdfs://b/run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gcsfs"):
        located("gs://b/run")


def test_a_corpus_in_a_bucket(buckets, tmp_path):
    """Patterns, a directory, and one file; tables are read in parts."""
    lines = "".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(20)).encode()
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["p", "q"]}), sink)
    buckets.objects["texts", "corpus/a.jsonl"] = lines
    buckets.objects["texts", "corpus/b.parquet"] = sink.getvalue().to_pybytes()
    buckets.objects["texts", "corpus/notes.bin"] = b"x"
    for number, (pattern, documents) in enumerate(
        [("corpus", 22), ("corpus/*.jsonl", 20), ("corpus/b.parquet", 2)]
    ):
        output = tmp_path / str(number)
        made = prepare(PrepareConfig((f"gs://texts/{pattern}",), str(output), tokenizer="bytes"))
        assert sum(one.documents for one in made.manifest.splits.values()) == documents
        assert all(name.startswith("gs://texts/corpus/") for name in made.manifest.inputs)
    with pytest.raises(UserError, match="no file matches the input 'gs://texts/none"):
        prepare(PrepareConfig(("gs://texts/none/*",), str(tmp_path / "x"), tokenizer="bytes"))
