"""slurm.sh: submission, the command of the job, and requeueing. sbatch runs the script directly."""

import pytest

from .conftest import HARD_TO_QUOTE

SUBMIT = ["--nodes", "4", "--gpus-per-node", "8"]
# Like Slurm: skips the options, then runs the script and its arguments in the job's environment.
RUN_JOB = 'while [[ $1 == --* ]]; do shift; done; SLURM_JOB_ID=77 bash "$@"'


def submitted(sandbox, *options: str, train=("c.py",), **env: str):
    done = sandbox.run("slurm.sh", *SUBMIT, *options, "--", *train, FAKE_SBATCH=RUN_JOB, **env)
    return done, {call["tool"]: call for call in sandbox.calls()}


def test_one_process_per_gpu(sandbox):
    done, calls = submitted(sandbox, train=HARD_TO_QUOTE)
    assert done.returncode == 0, done.stderr
    options = [word for word in calls["sbatch"]["argv"] if word.startswith("--")]
    assert {
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--requeue",
        "--signal=TERM@120",
    } <= set(options)
    srun = calls["srun"]["argv"]
    assert srun[srun.index("paxlike") :] == ["paxlike", "train", *HARD_TO_QUOTE]
    assert not any(word.startswith("--gpus-per-task") for word in [*options, *srun])
    # JAX uses the GPU of the process's local rank.
    assert "JAX_LOCAL_DEVICE_IDS" not in calls["srun"]["env"]
    assert not list(sandbox.folder.rglob("pwned"))


def test_one_process_per_node_has_all_gpus(sandbox):
    _, calls = submitted(sandbox, "--processes-per", "node")
    assert (
        "--ntasks-per-node=1" in calls["sbatch"]["argv"]
        and "--gpus-per-node=8" in calls["sbatch"]["argv"]
    )
    assert calls["srun"]["env"]["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3,4,5,6,7"


def test_options_of_sbatch_are_passed(sandbox):
    _, calls = submitted(sandbox, "--sbatch", "--partition=a b", "--sbatch", "--time=1-0")
    assert {"--partition=a b", "--time=1-0"} <= set(calls["sbatch"]["argv"])


@pytest.mark.parametrize(
    "code, restarts, requeued",
    [
        ("0", "0", False),
        ("2", "0", False),
        ("1", "0", True),
        ("134", "2", True),
        ("1", "3", False),
        ("143", "0", True),
        ("143", "99", True),
    ],
)
def test_requeueing_depends_on_the_exit_code(sandbox, code, restarts, requeued):
    done, calls = submitted(sandbox, FAKE_SRUN=f"exit {code}", SLURM_RESTART_COUNT=restarts)
    assert ("scontrol" in calls) == requeued
    if requeued:
        assert calls["scontrol"]["argv"] == ["requeue", "77"] and done.returncode == 0
    else:
        assert done.returncode == int(code)


def test_max_restarts(sandbox):
    _, calls = submitted(
        sandbox, "--max-restarts", "9", FAKE_SRUN="exit 1", SLURM_RESTART_COUNT="8"
    )
    assert "scontrol" in calls


@pytest.mark.parametrize("per", ["gpu", "node"])
def test_running_the_dry_runs_output_makes_the_same_calls(sandbox, per):
    options = [*SUBMIT, "--processes-per", per, "--sbatch", "--comment=it's; $HOME"]
    printed = sandbox.run("slurm.sh", *options, "--dry-run", "--", *HARD_TO_QUOTE)
    assert printed.returncode == 0 and not sandbox.calls(), printed.stderr
    assert sandbox.bash(printed.stdout, FAKE_SBATCH=RUN_JOB).returncode == 0
    from_bash = sandbox.calls()
    assert (
        sandbox.run("slurm.sh", *options, "--", *HARD_TO_QUOTE, FAKE_SBATCH=RUN_JOB).returncode == 0
    )
    assert sandbox.calls() == from_bash and [call["tool"] for call in from_bash] == [
        "sbatch",
        "srun",
    ]
    # The output includes the srun command as a comment.
    srun = printed.stdout[printed.stdout.index("# srun") + 2 :]
    assert sandbox.bash(srun).returncode == 0
    assert sandbox.calls()[0]["argv"] == from_bash[1]["argv"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (SUBMIT, "arguments of paxlike train are missing"),
        (["--gpus-per-node", "8", "--", "c.py"], "--nodes must be"),
        (["--nodes", "2", "--", "c.py"], "--gpus-per-node must be"),
        (["--nodes", "x;y", "--gpus-per-node", "8", "--", "c.py"], "x;y"),
        ([*SUBMIT, "--processes-per", "core", "--", "c.py"], "gpu or node"),
        ([*SUBMIT, "--max-restarts", "-1", "--", "c.py"], "--max-restarts"),
        ([*SUBMIT, "--gpu", "--", "c.py"], "unknown option --gpu"),
        (["--nodes"], "--nodes needs a value"),
    ],
)
def test_invalid_arguments_are_reported(sandbox, arguments, message):
    done = sandbox.run("slurm.sh", *arguments)
    assert done.returncode == 2 and message in done.stderr and not sandbox.calls()
