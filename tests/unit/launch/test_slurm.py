"""slurm.sh: what it submits, what the job runs, and when it goes back into the queue. sbatch runs the script at once."""

import pytest

from .conftest import NASTY

SUBMIT = ["--nodes", "4", "--gpus-per-node", "8"]
# As Slurm does: options first, then the script and its arguments, in the job's environment.
AT_ONCE = 'while [[ $1 == --* ]]; do shift; done; SLURM_JOB_ID=77 bash "$@"'


def submitted(desk, *options: str, train=("c.py",), **env: str):
    done = desk.run("slurm.sh", *SUBMIT, *options, "--", *train, FAKE_SBATCH=AT_ONCE, **env)
    return done, {call["tool"]: call for call in desk.calls()}


def test_one_process_a_gpu(desk):
    done, calls = submitted(desk, train=NASTY)
    assert done.returncode == 0, done.stderr
    options = [word for word in calls["sbatch"]["argv"] if word.startswith("--")]
    assert {"--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--requeue", "--signal=TERM@120"} <= set(options)
    srun = calls["srun"]["argv"]
    assert srun[srun.index("paxlike") :] == ["paxlike", "train", *NASTY]
    assert not any(word.startswith("--gpus-per-task") for word in [*options, *srun])
    # JAX takes the GPU of the process's local rank.
    assert "JAX_LOCAL_DEVICE_IDS" not in calls["srun"]["env"]
    assert not list(desk.folder.rglob("pwned"))


def test_one_process_a_node_has_all_its_gpus(desk):
    _, calls = submitted(desk, "--processes-per", "node")
    assert "--ntasks-per-node=1" in calls["sbatch"]["argv"] and "--gpus-per-node=8" in calls["sbatch"]["argv"]
    assert calls["srun"]["env"]["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3,4,5,6,7"


def test_slurms_own_options_pass(desk):
    _, calls = submitted(desk, "--sbatch", "--partition=a b", "--sbatch", "--time=1-0")
    assert {"--partition=a b", "--time=1-0"} <= set(calls["sbatch"]["argv"])


@pytest.mark.parametrize(
    "code, restarts, again",
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
def test_when_it_goes_back_into_the_queue(desk, code, restarts, again):
    done, calls = submitted(desk, FAKE_SRUN=f"exit {code}", SLURM_RESTART_COUNT=restarts)
    assert ("scontrol" in calls) == again
    if again:
        assert calls["scontrol"]["argv"] == ["requeue", "77"] and done.returncode == 0
    else:
        assert done.returncode == int(code)


def test_max_restarts(desk):
    _, calls = submitted(desk, "--max-restarts", "9", FAKE_SRUN="exit 1", SLURM_RESTART_COUNT="8")
    assert "scontrol" in calls


@pytest.mark.parametrize("per", ["gpu", "node"])
def test_the_dry_run_printed_into_bash_is_what_runs(desk, per):
    options = [*SUBMIT, "--processes-per", per, "--sbatch", "--comment=it's; $HOME"]
    printed = desk.run("slurm.sh", *options, "--dry-run", "--", *NASTY)
    assert printed.returncode == 0 and not desk.calls(), printed.stderr
    assert desk.bash(printed.stdout, FAKE_SBATCH=AT_ONCE).returncode == 0
    from_bash = desk.calls()
    assert desk.run("slurm.sh", *options, "--", *NASTY, FAKE_SBATCH=AT_ONCE).returncode == 0
    assert desk.calls() == from_bash and [call["tool"] for call in from_bash] == ["sbatch", "srun"]
    # The line of srun stands there as well, as a comment.
    srun = printed.stdout[printed.stdout.index("# srun") + 2 :]
    assert desk.bash(srun).returncode == 0
    assert desk.calls()[0]["argv"] == from_bash[1]["argv"]


@pytest.mark.parametrize(
    "arguments, says",
    [
        (SUBMIT, "what to train is missing"),
        (["--gpus-per-node", "8", "--", "c.py"], "--nodes must be"),
        (["--nodes", "2", "--", "c.py"], "--gpus-per-node must be"),
        (["--nodes", "x;y", "--gpus-per-node", "8", "--", "c.py"], "x;y"),
        ([*SUBMIT, "--processes-per", "core", "--", "c.py"], "gpu or node"),
        ([*SUBMIT, "--max-restarts", "-1", "--", "c.py"], "--max-restarts"),
        ([*SUBMIT, "--gpu", "--", "c.py"], "unknown option --gpu"),
        (["--nodes"], "--nodes needs a value"),
    ],
)
def test_mistakes_are_told(desk, arguments, says):
    done = desk.run("slurm.sh", *arguments)
    assert done.returncode == 2 and says in done.stderr and not desk.calls()
