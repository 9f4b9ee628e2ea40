"""tpu_vm.py: what it asks of gcloud, that the dry run is what runs, and what the workers then do (in a folder for a home)."""

import concurrent.futures
import json
import shutil
import sys

import pytest

from .conftest import NASTY, ROOT

WHERE = ("--project", "my-project", "--zone", "z-1")
FLAGS = ["--project=my-project", "--zone=z-1"]
MAKE = ("--accelerator-type", "v5p-64", "--runtime-version", "image-1")
VERBS = {
    "create": ["create", "me", *MAKE], "spot": ["create", "me", *MAKE, "--spot"],
    "queued": ["create", "me", *MAKE, "--queued"], "slices": ["create", "me", *MAKE, "--queued", "--slices", "4"],
    "state": ["state", "me"], "install": ["install", "me", "--queued", "--python", "python3.12"], "logs": ["logs", "me"],
    "stop": ["stop", "me", "--queued"], "delete": ["delete", "me", "--yes"], "delete queued": ["delete", "me", "--yes", "--queued"],
}  # fmt: skip


def command(call: dict) -> list[str]:
    assert call["tool"] == "gcloud" and call["argv"][:2] == ["compute", "tpus"]
    return call["argv"][2:]


@pytest.mark.parametrize("verb", [*VERBS, "start"])
def test_the_dry_run_printed_into_bash_is_what_runs(desk, verb):
    arguments = [*VERBS.get(verb, ["start", "me", "--max-restarts", "7"]), *WHERE]
    train = ["--", *NASTY] if verb == "start" else []
    absent = {"FAKE_GCLOUD": "[[ $4 != describe || $* == *--format* ]]"}
    printed = desk.run("tpu_vm.py", *arguments, "--dry-run", *train)
    assert printed.returncode == 0, printed.stderr
    assert not desk.calls()
    assert desk.bash(printed.stdout, **absent).returncode == 0
    from_bash = desk.calls()
    done = desk.run("tpu_vm.py", *arguments, *train, **absent)
    assert done.returncode == 0, done.stderr
    assert desk.calls() == from_bash != []


def test_create_names_what_gcloud_needs(desk):
    desk.run("tpu_vm.py", *VERBS["spot"], *WHERE, FAKE_GCLOUD="[[ $4 != describe ]]")
    look, make = map(command, desk.calls())
    assert look == ["tpu-vm", "describe", "me", *FLAGS]
    assert make[:3] == ["tpu-vm", "create", "me"]
    assert set(make[3:]) == {"--version=image-1", "--accelerator-type=v5p-64", "--spot", *FLAGS}

    desk.run("tpu_vm.py", *VERBS["slices"], *WHERE, FAKE_GCLOUD="[[ $4 != describe ]]")
    make = command(desk.calls()[1])
    assert make[:3] == ["queued-resources", "create", "me"]
    assert set(make[3:]) == {
        "--runtime-version=image-1", "--accelerator-type=v5p-64", "--node-count=4", "--node-prefix=me", *FLAGS,
    }  # fmt: skip

    desk.run("tpu_vm.py", *VERBS["queued"], *WHERE, FAKE_GCLOUD="[[ $4 != describe ]]")
    assert "--node-id=me" in command(desk.calls()[1])


def test_what_is_there_is_reused(desk):
    done = desk.run("tpu_vm.py", *VERBS["create"], *WHERE)
    assert done.returncode == 0 and "there already" in done.stderr
    assert [command(call)[1] for call in desk.calls()] == ["describe"]


def test_every_worker_of_every_slice_is_meant(desk):
    desk.run("tpu_vm.py", "logs", "me", *WHERE)
    assert "--worker=all" in command(desk.calls()[0])
    desk.run("tpu_vm.py", "logs", "me", "--queued", *WHERE)
    assert {"--worker=all", "--node=all", "--batch-size=all"} < set(command(desk.calls()[0]))


def test_nothing_is_assumed(desk):
    done = desk.run("tpu_vm.py", "state", "me", "--zone", "z-1")
    assert done.returncode == 2 and "--project" in done.stderr and "CLOUDSDK_CORE_PROJECT" in done.stderr
    done = desk.run("tpu_vm.py", "state", "me", "--project", "my-project")
    assert done.returncode == 2 and "--zone" in done.stderr and "CLOUDSDK_COMPUTE_ZONE" in done.stderr
    assert not desk.calls()
    desk.run("tpu_vm.py", "state", "me", CLOUDSDK_CORE_PROJECT="p-2", CLOUDSDK_COMPUTE_ZONE="z-2")
    assert command(desk.calls()[0])[-2:] == ["--project=p-2", "--zone=z-2"]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["start", "me", *WHERE], "after --"),
        (["logs", "me", *WHERE, "--", "x"], "takes nothing after --"),
        (["create", "me", *MAKE, "--slices", "2", *WHERE], "--queued"),
    ],
)
def test_mistakes_are_told(desk, arguments, says):
    done = desk.run("tpu_vm.py", *arguments)
    assert done.returncode == 2 and says in done.stderr and not desk.calls()


@pytest.mark.parametrize("answer, deleted", [("y\n", True), ("\n", False), ("n\n", False), ("", False)])
def test_delete_asks(desk, answer, deleted):
    done = desk.run("tpu_vm.py", "delete", "me", "--queued", *WHERE, stdin=answer)
    assert (done.returncode == 0) == deleted
    assert [command(call)[:2] for call in desk.calls()] == [["queued-resources", "delete"]] * deleted


def test_a_failed_command_ends_the_verb_with_its_exit_code(desk):
    done = desk.run("tpu_vm.py", "install", "me", *WHERE, FAKE_GCLOUD="exit 5")
    assert done.returncode == 5 and [command(call)[1] for call in desk.calls()] == ["scp"]


def test_a_missing_tool_is_named(desk):
    (desk.bin / "gcloud").unlink()
    desk.env["PATH"] = str(desk.bin)
    done = desk.run("tpu_vm.py", "state", "me", *WHERE)
    assert done.returncode == 127 and "gcloud is not on PATH" in done.stderr


# ---- on the workers --------------------------------------------------------------------------------------------------

PAXLIKE = """#!{python} -IS
import json, os, signal, sys
with open("calls.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
n = sum(1 for _ in open("calls.jsonl"))
codes = {codes}
if codes == "wait":
    def save(*_):
        open("saving", "w").close()
        while not os.path.exists("may-end"):
            pass
        print("saved" if os.getppid() == parent else "left alone", flush=True)
        os._exit(143)
    parent = os.getppid()
    signal.signal(signal.SIGTERM, save)
    print("training", flush=True)
    open("ready", "w").close()
    signal.pause()
print("attempt", n, flush=True)
sys.exit(codes[min(n, len(codes)) - 1])
"""


@pytest.fixture
def worker(desk):
    """Makes a home with the tree in ~/paxlike and a `paxlike` that ends with the given codes, or waits for SIGTERM."""

    def make(codes):
        home = desk.folder / "home"
        (home / "paxlike" / ".venv" / "bin").mkdir(parents=True)
        shutil.copytree(ROOT / "launch", home / "paxlike" / "launch")
        fake = home / "paxlike" / ".venv" / "bin" / "paxlike"
        fake.write_text(PAXLIKE.format(python=sys.executable, codes=repr(codes)))
        fake.chmod(0o755)
        # What ssh does: the user's shell gets --command as one text, in the home folder.
        ssh = 'for a; do [[ $a == --command=* ]] && { cd "$HOME"; exec bash -c "${a#--command=}"; }; done; true'
        desk.env |= {"HOME": str(home), "FAKE_GCLOUD": ssh, "PAXLIKE_RESTART_SECONDS": "0"}
        return home / "paxlike"

    return make


def test_arguments_arrive_whole_on_the_worker(desk, worker):
    there = worker([0])
    done = desk.run("tpu_vm.py", "start", "me", *WHERE, "--", *NASTY)
    assert done.returncode == 0 and "started" in done.stdout, done.stderr
    assert "attempt 1" in desk.run("tpu_vm.py", "logs", "me", *WHERE).stdout
    assert [json.loads(line) for line in (there / "calls.jsonl").read_text().splitlines()] == [["train", *NASTY]]
    assert not list(desk.folder.rglob("pwned"))


@pytest.mark.parametrize(
    "codes, restarts, attempts",
    [([1, 134, 0], 3, 3), ([1], 2, 3), ([1], 0, 1), ([2], 5, 1), ([0], 5, 1)],
    ids=["recovers", "gives up", "no restarts", "the user's mistake", "done"],
)
def test_a_worker_starts_again_after_a_crash(desk, worker, codes, restarts, attempts):
    there = worker(codes)
    desk.run("tpu_vm.py", "start", "me", "--max-restarts", str(restarts), *WHERE, "--", "c.py")
    told = desk.run("tpu_vm.py", "logs", "me", *WHERE).stdout
    assert len((there / "calls.jsonl").read_text().splitlines()) == attempts
    assert told.count("attempt ") == attempts and ("not starting again" in told) == (codes == [1])
    assert all(": " in line for line in told.splitlines())


def test_stop_waits_for_what_is_saved_and_starts_nothing_again(desk, worker):
    there = worker("wait")
    desk.run("tpu_vm.py", "start", "me", *WHERE, "--", "c.py")
    assert desk.bash(f"until [ -e {there}/ready ]; do sleep .02; done").returncode == 0
    again = desk.run("tpu_vm.py", "start", "me", *WHERE, "--", "c.py")
    assert again.returncode == 1 and "training already" in again.stderr
    with concurrent.futures.ThreadPoolExecutor() as pool:
        stopping = pool.submit(desk.run, "tpu_vm.py", "stop", "me", *WHERE)
        desk.bash(f"until [ -e {there}/saving ]; do sleep .02; done")
        (there / "may-end").touch()
        done = stopping.result()
    assert done.returncode == 0 and "stopped" in done.stdout, done.stderr
    assert (there / "logs" / "train.log").read_text().split() == ["training", "saved"]
    assert len((there / "calls.jsonl").read_text().splitlines()) == 1
    assert "not training" in desk.run("tpu_vm.py", "stop", "me", *WHERE).stdout


def test_install_brings_what_is_committed_and_keeps_runs(desk, worker):
    there = worker([0])
    (there / "runs").mkdir()
    (there / "paxlike").mkdir()
    (there / "paxlike" / "gone.py").touch()
    # scp copies; then ssh. pip is a recorder.
    copy = '[[ $4 == scp ]] && { cp "$5" "$HOME/paxlike.tar.gz"; exit; }; '
    fake_python = desk.bin / "python3.99"
    fake_python.write_text('#!/bin/sh\necho "$@" >> python-calls\nmkdir -p .venv/bin\nln -sf "$0" .venv/bin/python\n')
    fake_python.chmod(0o755)
    desk.env["FAKE_GCLOUD"] = copy + desk.env["FAKE_GCLOUD"]
    done = desk.run("tpu_vm.py", "install", "me", "--python", "python3.99", *WHERE)
    assert done.returncode == 0, done.stderr
    assert (there / "paxlike" / "cli.py").is_file() and (there / "runs").is_dir()
    assert not (there / "paxlike" / "gone.py").exists()
    assert "pip install --quiet --upgrade --editable .[tpu,gcs]" in (there / "python-calls").read_text()
