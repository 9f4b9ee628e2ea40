"""Checksums detect any change of a checkpoint's files; the processes of a job share the work."""

import json

import pytest

from paxlike.training import checksums as module
from paxlike.training.checksums import delete_checksums, find_corruption, write_checksums


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


def test_an_intact_checkpoint(checkpoints):
    assert find_corruption(checkpoints, 5) is None, "a checkpoint without checksums is accepted"
    write_checksums(checkpoints, 5)
    assert find_corruption(checkpoints, 5) is None


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["state/d/a", "state/d/b", "state/p/d/c", "position/metadata"])
@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (flip_bit, "was changed"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "truncated"),
    ],
    ids=["flipped", "missing", "truncated"],
)
def test_corruption_of_any_file_is_detected(checkpoints, name, corrupt, message):
    write_checksums(checkpoints, 5)
    corrupt(checkpoints / "5" / name)
    assert name in find_corruption(checkpoints, 5) and message in find_corruption(checkpoints, 5)


def test_processes_share_the_files_and_any_number_of_processes_verifies_them(
    checkpoints, monkeypatch
):
    for k in range(3):
        as_process(monkeypatch, k, 3)
        write_checksums(checkpoints, 5)
    shares = [
        json.loads(path.read_text())
        for path in sorted((checkpoints.parent / "seals" / "5").iterdir())
    ]
    assert (
        sum(len(share) for share in shares)
        == len({name for share in shares for name in share})
        == 4
    )
    flip_bit(checkpoints / "5" / "state" / "d" / "b")
    found = []
    for k in range(2):
        as_process(monkeypatch, k, 2)
        found.append(module._find_corruption_in_share(checkpoints, 5))
    assert [bool(text) for text in found].count(True) == 1


def test_checksums_cannot_name_files_outside_the_checkpoint(checkpoints):
    write_checksums(checkpoints, 5)
    path = checkpoints.parent / "seals" / "5" / "0-of-1.json"
    path.write_text(json.dumps({"../../../secret": "0"}))
    assert "name a file outside" in find_corruption(checkpoints, 5)
    path.write_text("{")
    assert "is corrupted" in find_corruption(checkpoints, 5)


def test_checksums_of_replaced_and_removed_checkpoints_are_deleted(checkpoints):
    write_checksums(checkpoints, 5)
    delete_checksums(checkpoints, 5)
    assert not (checkpoints.parent / "seals" / "5").exists()
    write_checksums(checkpoints, 5)
    (checkpoints / "6").mkdir()
    (checkpoints / "5").rename(checkpoints / "5.unreadable")
    write_checksums(checkpoints, 6)
    assert [path.name for path in (checkpoints.parent / "seals").iterdir()] == ["6"]
