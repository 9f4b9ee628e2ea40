"""A seal notices whatever became of a checkpoint's files; processes share the reading."""

import json

import pytest

from paxlike.train import seal as module
from paxlike.train.seal import damage, seal, unseal


@pytest.fixture
def checkpoints(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    for name, text in {
        "state/d/a": "A" * 1000,
        "state/d/b": "B" * 1000,
        "state/p/d/c": "C",
        "position/metadata": "{}",
    }.items():
        (folder / "5" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "5" / name).write_text(text)
    return folder


def as_process(monkeypatch, k: int, n: int) -> None:
    monkeypatch.setattr(module.jax, "process_index", lambda: k)
    monkeypatch.setattr(module.jax, "process_count", lambda: n)


def test_whole(checkpoints):
    assert damage(checkpoints, 5) is None, "a checkpoint without a seal is taken as it is"
    seal(checkpoints, 5)
    assert damage(checkpoints, 5) is None


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["state/d/a", "state/d/b", "state/p/d/c", "position/metadata"])
@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (flip, "was changed"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "cut short"),
    ],
    ids=["flipped", "missing", "truncated"],
)
def test_any_file_damaged_in_any_way(checkpoints, name, harm, says):
    seal(checkpoints, 5)
    harm(checkpoints / "5" / name)
    assert name in damage(checkpoints, 5) and says in damage(checkpoints, 5)


def test_processes_share_the_files_and_any_number_reads_them(checkpoints, monkeypatch):
    for k in range(3):
        as_process(monkeypatch, k, 3)
        seal(checkpoints, 5)
    shares = [json.loads(path.read_text()) for path in sorted((checkpoints.parent / "seals" / "5").iterdir())]
    assert sum(len(share) for share in shares) == len({name for share in shares for name in share}) == 4
    flip(checkpoints / "5" / "state" / "d" / "b")
    found = []
    for k in range(2):
        as_process(monkeypatch, k, 2)
        found.append(module._damage_here(checkpoints, 5))
    assert [bool(text) for text in found].count(True) == 1


def test_a_seal_cannot_reach_outside_of_its_checkpoint(checkpoints):
    seal(checkpoints, 5)
    path = checkpoints.parent / "seals" / "5" / "0-of-1.json"
    path.write_text(json.dumps({"../../../secret": "0"}))
    assert "names a file outside" in damage(checkpoints, 5)
    path.write_text("{")
    assert "is damaged" in damage(checkpoints, 5)


def test_a_step_that_is_written_again_and_one_that_is_gone(checkpoints):
    seal(checkpoints, 5)
    unseal(checkpoints, 5)
    assert not (checkpoints.parent / "seals" / "5").exists()
    seal(checkpoints, 5)
    (checkpoints / "6").mkdir()
    (checkpoints / "5").rename(checkpoints / "5.unreadable")
    seal(checkpoints, 6)
    assert [path.name for path in (checkpoints.parent / "seals").iterdir()] == ["6"]
