"""tpu_vm.py: gcloud commands, dry run, and the script on the workers (in a local folder)."""

import concurrent.futures
import json
import shutil
import sys

import pytest

from .conftest import HARD_TO_QUOTE, ROOT

WHERE = ("--project", "my-project", "--zone", "z-1")
FLAGS = ["--project=my-project", "--zone=z-1"]
TYPE = ("--accelerator-type", "v5p-64", "--runtime-version", "image-1")
CASES = {
    "create": ["create", "me", *TYPE],
    "spot": ["create", "me", *TYPE, "--spot"],
    "queued": ["create", "me", *TYPE, "--queued"],
    "slices": ["create", "me", *TYPE, "--queued", "--slices", "4"],
    "state": ["state", "me"],
    "install": ["install", "me", "--queued", "--python", "python3.12"],
    "logs": ["logs", "me"],
    "stop": ["stop", "me", "--queued"],
    "delete": ["delete", "me", "--yes"],
    "delete queued": ["delete", "me", "--yes", "--queued"],
}


def command(call: dict) -> list[str]:
    assert call["tool"] == "gcloud" and call["argv"][:2] == ["compute", "tpus"]
    return call["argv"][2:]


@pytest.mark.parametrize("case", [*CASES, "start"])
def test_running_the_dry_runs_output_makes_the_same_calls(sandbox, case):
    arguments = [*CASES.get(case, ["start", "me", "--max-restarts", "7"]), *WHERE]
    train = ["--", *HARD_TO_QUOTE] if case == "start" else []
    absent = {"FAKE_GCLOUD": "[[ $4 != describe || $* == *--format* ]]"}
    printed = sandbox.run("tpu_vm.py", *arguments, "--dry-run", *train)
    assert printed.returncode == 0, printed.stderr
    assert not sandbox.calls()
    assert sandbox.bash(printed.stdout, **absent).returncode == 0
    from_bash = sandbox.calls()
    done = sandbox.run("tpu_vm.py", *arguments, *train, **absent)
    assert done.returncode == 0, done.stderr
    assert sandbox.calls() == from_bash != []


def test_create_passes_the_required_flags(sandbox):
    sandbox.run("tpu_vm.py", *CASES["spot"], *WHERE, FAKE_GCLOUD="[[ $4 != describe ]]")
    describe, create = map(command, sandbox.calls())
    assert describe == ["tpu-vm", "describe", "me", *FLAGS]
    assert create[:3] == ["tpu-vm", "create", "me"]
    assert set(create[3:]) == {"--version=image-1", "--accelerator-type=v5p-64", "--spot", *FLAGS}

    sandbox.run("tpu_vm.py", *CASES["slices"], *WHERE, FAKE_GCLOUD="[[ $4 != describe ]]")
    create = command(sandbox.calls()[1])
    assert create[:3] == ["queued-resources", "create", "me"]
    assert set(create[3:]) == {
        "--runtime-version=image-1",
        "--accelerator-type=v5p-64",
        "--node-count=4",
        "--node-prefix=me",
        *FLAGS,
    }

    sandbox.run("tpu_vm.py", *CASES["queued"], *WHERE, FAKE_GCLOUD="[[ $4 != describe ]]")
    assert "--node-id=me" in command(sandbox.calls()[1])


def test_create_reuses_an_existing_vm(sandbox):
    done = sandbox.run("tpu_vm.py", *CASES["create"], *WHERE)
    assert done.returncode == 0 and "already exists" in done.stderr
    assert [command(call)[1] for call in sandbox.calls()] == ["describe"]


def test_commands_apply_to_every_worker_of_every_slice(sandbox):
    sandbox.run("tpu_vm.py", "logs", "me", *WHERE)
    assert "--worker=all" in command(sandbox.calls()[0])
    sandbox.run("tpu_vm.py", "logs", "me", "--queued", *WHERE)
    assert {"--worker=all", "--node=all", "--batch-size=all"} < set(command(sandbox.calls()[0]))


def test_project_and_zone_have_no_default(sandbox):
    done = sandbox.run("tpu_vm.py", "state", "me", "--zone", "z-1")
    assert (
        done.returncode == 2
        and "--project" in done.stderr
        and "CLOUDSDK_CORE_PROJECT" in done.stderr
    )
    done = sandbox.run("tpu_vm.py", "state", "me", "--project", "my-project")
    assert (
        done.returncode == 2 and "--zone" in done.stderr and "CLOUDSDK_COMPUTE_ZONE" in done.stderr
    )
    assert not sandbox.calls()
    sandbox.run(
        "tpu_vm.py", "state", "me", CLOUDSDK_CORE_PROJECT="p-2", CLOUDSDK_COMPUTE_ZONE="z-2"
    )
    assert command(sandbox.calls()[0])[-2:] == ["--project=p-2", "--zone=z-2"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["start", "me", *WHERE], "after --"),
        (["logs", "me", *WHERE, "--", "x"], "takes nothing after --"),
        (["create", "me", *TYPE, "--slices", "2", *WHERE], "--queued"),
    ],
)
def test_invalid_arguments_are_reported(sandbox, arguments, message):
    done = sandbox.run("tpu_vm.py", *arguments)
    assert done.returncode == 2 and message in done.stderr and not sandbox.calls()


@pytest.mark.parametrize(
    "answer, deleted", [("y\n", True), ("\n", False), ("n\n", False), ("", False)]
)
def test_delete_asks_for_confirmation(sandbox, answer, deleted):
    done = sandbox.run("tpu_vm.py", "delete", "me", "--queued", *WHERE, stdin=answer)
    assert (done.returncode == 0) == deleted
    assert [command(call)[:2] for call in sandbox.calls()] == [
        ["queued-resources", "delete"]
    ] * deleted


def test_the_first_failing_step_sets_the_exit_code(sandbox):
    done = sandbox.run("tpu_vm.py", "install", "me", *WHERE, FAKE_GCLOUD="exit 5")
    assert done.returncode == 5 and [command(call)[1] for call in sandbox.calls()] == ["scp"]


def test_a_missing_tool_is_reported(sandbox):
    (sandbox.bin / "gcloud").unlink()
    sandbox.env["PATH"] = str(sandbox.bin)
    done = sandbox.run("tpu_vm.py", "state", "me", *WHERE)
    assert done.returncode == 127 and "gcloud is not on PATH" in done.stderr


# ---- on the workers ------------------------------------------------------------------------------

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
def worker(sandbox):
    """make(codes): a home directory with the repository in ~/paxlike and a fake `paxlike`.

    The fake exits with the codes in turn; with "wait", it waits for SIGTERM. Returns ~/paxlike.
    """

    def make(codes):
        home = sandbox.folder / "home"
        (home / "paxlike" / ".venv" / "bin").mkdir(parents=True)
        shutil.copytree(ROOT / "launch", home / "paxlike" / "launch")
        fake = home / "paxlike" / ".venv" / "bin" / "paxlike"
        fake.write_text(PAXLIKE.format(python=sys.executable, codes=repr(codes)))
        fake.chmod(0o755)
        # Like ssh: the user's shell runs --command, a single string, in the home directory.
        ssh = (
            "for a; do [[ $a == --command=* ]] && "
            '{ cd "$HOME"; exec bash -c "${a#--command=}"; }; done; true'
        )
        sandbox.env |= {"HOME": str(home), "FAKE_GCLOUD": ssh, "PAXLIKE_RESTART_SECONDS": "0"}
        return home / "paxlike"

    return make


def test_arguments_reach_the_worker_unchanged(sandbox, worker):
    home = worker([0])
    done = sandbox.run("tpu_vm.py", "start", "me", *WHERE, "--", *HARD_TO_QUOTE)
    assert done.returncode == 0 and "started" in done.stdout, done.stderr
    assert "attempt 1" in sandbox.run("tpu_vm.py", "logs", "me", *WHERE).stdout
    assert [json.loads(line) for line in (home / "calls.jsonl").read_text().splitlines()] == [
        ["train", *HARD_TO_QUOTE]
    ]
    assert not list(sandbox.folder.rglob("pwned"))


@pytest.mark.parametrize(
    "codes, restarts, attempts",
    [([1, 134, 0], 3, 3), ([1], 2, 3), ([1], 0, 1), ([2], 5, 1), ([0], 5, 1)],
    ids=["recovers", "gives up", "no restarts", "user error", "done"],
)
def test_a_worker_restarts_after_a_crash(sandbox, worker, codes, restarts, attempts):
    home = worker(codes)
    sandbox.run("tpu_vm.py", "start", "me", "--max-restarts", str(restarts), *WHERE, "--", "c.py")
    output = sandbox.run("tpu_vm.py", "logs", "me", *WHERE).stdout
    assert len((home / "calls.jsonl").read_text().splitlines()) == attempts
    assert output.count("attempt ") == attempts and ("not restarting" in output) == (codes == [1])
    assert all(": " in line for line in output.splitlines())


def test_stop_waits_for_the_save_and_does_not_restart(sandbox, worker):
    home = worker("wait")
    sandbox.run("tpu_vm.py", "start", "me", *WHERE, "--", "c.py")
    assert sandbox.bash(f"until [ -e {home}/ready ]; do sleep .02; done").returncode == 0
    second = sandbox.run("tpu_vm.py", "start", "me", *WHERE, "--", "c.py")
    assert second.returncode == 1 and "already training" in second.stderr
    with concurrent.futures.ThreadPoolExecutor() as pool:
        stopping = pool.submit(sandbox.run, "tpu_vm.py", "stop", "me", *WHERE)
        sandbox.bash(f"until [ -e {home}/saving ]; do sleep .02; done")
        (home / "may-end").touch()
        done = stopping.result()
    assert done.returncode == 0 and "stopped" in done.stdout, done.stderr
    assert (home / "logs" / "train.log").read_text().split() == ["training", "saved"]
    assert len((home / "calls.jsonl").read_text().splitlines()) == 1
    assert "not training" in sandbox.run("tpu_vm.py", "stop", "me", *WHERE).stdout


def test_install_copies_the_committed_files_and_keeps_runs(sandbox, worker):
    home = worker([0])
    (home / "runs").mkdir()
    (home / "paxlike").mkdir()
    (home / "paxlike" / "gone.py").touch()
    # scp copies the archive; a fake Python records the calls of pip.
    copy = '[[ $4 == scp ]] && { cp "$5" "$HOME/paxlike.tar.gz"; exit; }; '
    fake_python = sandbox.bin / "python3.99"
    fake_python.write_text(
        '#!/bin/sh\necho "$@" >> python-calls\nmkdir -p .venv/bin\nln -sf "$0" .venv/bin/python\n'
    )
    fake_python.chmod(0o755)
    sandbox.env["FAKE_GCLOUD"] = copy + sandbox.env["FAKE_GCLOUD"]
    done = sandbox.run("tpu_vm.py", "install", "me", "--python", "python3.99", *WHERE)
    assert done.returncode == 0, done.stderr
    assert (home / "paxlike" / "cli.py").is_file() and (home / "runs").is_dir()
    assert not (home / "paxlike" / "gone.py").exists()
    assert (
        "pip install --quiet --upgrade --editable .[tpu,gcs]" in (home / "python-calls").read_text()
    )
