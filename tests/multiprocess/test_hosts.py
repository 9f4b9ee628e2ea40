"""Jobs that go well: the same losses and batches on any number of hosts, and a guard that all hosts
obey alike.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

LOOPBACK = "0000000000000000FFFF00000100007F"
"""127.0.0.1 as an IPv6 socket has it; all zeros would be every address of the machine."""


def test_one_two_and_four_hosts_read_the_same_batches(launch, whole, losses, fingerprints):
    steps = range(1, 5)
    batches = {2: {step: fingerprints("whole")[step] for step in steps}}
    found = {2: [whole[step] for step in steps]}
    for hosts in (1, 4):
        job = launch(f"hosts-{hosts}", "--train.steps", "4", hosts=hosts, devices=4 // hosts)
        assert job.end() == 0, job.output
        batches[hosts] = fingerprints(f"hosts-{hosts}")
        found[hosts] = list(losses(f"hosts-{hosts}").values())
    assert batches[1] == batches[2] == batches[4] and len(set(batches[1].values())) == 4
    np.testing.assert_allclose(found[2], found[1], rtol=1e-5)
    np.testing.assert_allclose(found[4], found[1], rtol=1e-5)


def test_two_runs_have_bitwise_the_same_losses(launch, place, losses, reached, whole, secret):
    job = launch("again", "--deterministic")
    job.until(lambda: reached("again", 1))
    port = int(re.search(r"coordinator 127.0.0.1:(\d+)", job.output).group(1))
    assert listening(port) == {LOOPBACK}, (
        "the coordinator listens elsewhere than at the address given"
    )
    assert job.end() == 0, job.output
    assert losses("again") == whole
    assert secret not in job.output
    assert [
        path
        for path in (place / "again").rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ] == []


def test_two_processes_evaluate_and_generate(processes, place, whole):
    lines = [
        json.loads(text) for text in (place / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    (line,) = [line for line in lines if line.get("event") == "evaluation"]
    first, second = processes(["-m", "paxlike"], *[["eval", "whole", "--batches", "2"]] * 2)
    assert (first.end(), second.end()) == (0, 0), first.output + second.output
    assert f"step 24: loss {line['loss']:.4f}" in first.output and "loss" not in second.output
    first, second = processes(
        ["-m", "paxlike"], *[["generate", "whole", "The ", "--max-new-tokens", "4"]] * 2
    )
    assert (first.end(), second.end()) == (0, 0), first.output + second.output
    assert "The " in first.output and "The " not in second.output


def listening(port: int) -> set[str]:
    """The addresses, as Linux writes them, that sockets of this machine listen at on the port."""
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    found = {row[1] for row in rows if row[3] == "0A"}
    return {address for address, at in (place.split(":") for place in found) if int(at, 16) == port}


def test_a_run_resumes_with_half_the_hosts(launch, losses, fingerprints, whole):
    job = launch("halved", "--train.steps", "12")
    assert job.end() == 0, job.output
    again = launch("halved", hosts=1)
    assert again.end() == 0, again.output
    assert "resuming from step 12" in again.output
    assert fingerprints("halved") == fingerprints("whole")
    found = losses("halved")
    np.testing.assert_allclose([found[step] for step in whole], list(whole.values()), rtol=1e-5)


GUARD = [
    "--guard.rewinds",
    "2",
    "--guard.back",
    "4",
    "--guard.skip",
    "5",
    "--checkpoint.every",
    "4",
]


def test_a_nan_in_a_batch_is_rewound_and_skipped_by_all_hosts(
    processes, launch, place, losses, monkeypatch
):
    """Equal to the run that never had the batches, and went on with that list of what is
    skipped.
    """
    monkeypatch.setenv("POISON", "13")
    poisoned = str(Path(__file__).parent / "poisoned.py")
    jobs = processes([poisoned], *[["train", "small.py", "--run-dir", "poisoned", *GUARD]] * 2)
    assert [job.end() for job in jobs] == [0, 0], jobs[0].output + jobs[1].output
    assert (
        "spike at step 14: the loss is nan" in jobs[0].output
        and "Rewound to step 8" in jobs[0].output
    )
    (row,) = json.loads((place / "poisoned" / "skipped.json").read_text())
    assert (row["first_batch"], row["batches"]) == (9, 5)

    clean = launch("never-had", *GUARD, "--train.steps", "4")
    assert clean.end() == 0, clean.output
    (place / "never-had" / "skipped.json").write_text(json.dumps([row]))
    clean = launch("never-had", *GUARD)
    assert clean.end() == 0, clean.output
    assert losses("poisoned") == losses("never-had")
