"""What may befall a job: each time nothing is lost, and the losses are those of the run that
nothing disturbed, bit for bit.
"""

import os
import shutil
import signal
import time

import pytest

pytestmark = pytest.mark.slow


def went_on(job, fault: str, recovery: dict, since: float) -> None:
    """Notes when the next attempt compiled its step, after which it trains."""
    count = job.output.count("compiled the train step")
    job.until(lambda: job.output.count("compiled the train step") > count)
    recovery[fault] = time.monotonic() - since


@pytest.mark.parametrize(
    ("victim", "says"), [(1, "process 1 on"), (0, "process 0 was killed by SIGKILL")]
)
def test_a_killed_process_ends_the_job_which_resumes(
    launch, place, losses, whole, recovery, victim, says
):
    """kill -9 during a step, of a worker and of the coordinator. The launcher starts the job
    again.
    """
    run, hold, held = f"killed-{victim}", place / "hold", place / "held"
    hold.write_text(str(victim))
    # Killed after the save at 8 and well before the next one: processes that wait for a dead one to
    # save learn of it by heartbeats only, after the launcher's patience.
    job = launch(run, "--checkpoint.every", "8", restarts=1, config="paced.py")
    job.until(lambda: held.exists() and (place / run / "checkpoints" / "8").is_dir())
    hold.unlink()
    held.unlink()
    since = time.monotonic()
    os.kill(job.pids[victim], signal.SIGKILL)
    went_on(job, run, recovery, since)
    assert job.end() == 0, job.output
    assert says in job.output and "resuming from step" in job.output
    assert recovery[run] < 60
    assert losses(run) == whole


def test_killed_while_a_checkpoint_is_written(launch, place, losses, reached, whole, recovery):
    job = launch("half-saved", restarts=1, config="paced.py")
    checkpoints = place / "half-saved" / "checkpoints"
    job.until(
        lambda: (
            (checkpoints / "4").is_dir()
            and any("tmp" in path.name for path in checkpoints.iterdir())
        )
    )
    since = time.monotonic()
    for pid in job.pids:
        os.kill(pid, signal.SIGKILL)
    unfinished = [path.name for path in checkpoints.iterdir() if "tmp" in path.name]
    went_on(job, "killed while saving", recovery, since)
    assert job.end() == 0, job.output
    assert unfinished, "the save was over before the kill"
    assert not any("tmp" in path.name for path in checkpoints.iterdir())
    assert losses("half-saved") == whole


def test_sigterm_to_all_saves_and_resumes_at_once(launch, place, losses, reached, whole, recovery):
    job = launch("preempted", restarts=1, config="paced.py")
    job.until(lambda: reached("preempted", 5))
    since = time.monotonic()
    for pid in job.pids:
        os.kill(pid, signal.SIGTERM)
    went_on(job, "SIGTERM to all", recovery, since)
    assert job.end() == 0, job.output
    assert "stopped by SIGTERM at step" in job.output and "restarting immediately" in job.output
    found = losses("preempted")
    assert found == whole


def test_sigterm_to_the_launcher_stops_the_job(launch, place, losses, reached, whole):
    job = launch("told", "--train.steps", "4000", restarts=1)
    job.until(lambda: reached("told", 3))
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 128 + signal.SIGTERM, job.output
    step = max(losses("told"))
    assert f"stopped by SIGTERM at step {step}" in job.output
    assert (place / "told" / "checkpoints" / str(step)).is_dir()


def test_a_stopped_process_is_named_and_the_job_resumes(
    launch, place, losses, reached, whole, recovery
):
    # Saves at 7, 14 and 21: what is saved is not watched, and a process stopped there is found by
    # its heartbeats, after 20 s.
    job = launch(
        "stopped",
        "--watchdog.at-least",
        "4",
        "--checkpoint.every",
        "7",
        restarts=1,
        config="paced.py",
    )
    job.until(lambda: reached("stopped", 8))
    since = time.monotonic()
    os.kill(job.pids[1], signal.SIGSTOP)
    went_on(job, "SIGSTOP of one process", recovery, since)
    assert job.end() == 0, job.output
    assert (
        "no longer answers: killed, stopped or disconnected" in job.output
        and "process 1 on" in job.output
    )
    stacks = (place / "stopped" / "stacks" / "process-0.txt").read_text()
    assert "last step finished" in stacks and "loop.py" in stacks
    assert losses("stopped") == whole


def test_damaged_checkpoints_are_set_aside_by_all(launch, place, losses, whole):
    """One cut short, one with a flipped bit, one with a file missing: the one before them is
    read.
    """
    shutil.copytree(place / "whole", place / "damaged")
    checkpoints = place / "damaged" / "checkpoints"
    shutil.rmtree(checkpoints / "24")
    files = {
        step: max(
            (path for path in (checkpoints / step).rglob("d/*") if path.is_file()),
            key=lambda path: path.stat().st_size,
        )
        for step in ("12", "16", "20")
    }
    data = files["12"].read_bytes()
    files["12"].write_bytes(data[: len(data) // 2])
    data = bytearray(files["16"].read_bytes())
    data[len(data) // 2] ^= 16
    files["16"].write_bytes(data)
    files["20"].unlink()
    job = launch("damaged")
    assert job.end() == 0, job.output
    for step, reason in (("12", "truncated"), ("16", "was changed"), ("20", "is missing")):
        (line,) = [line for line in job.lines if f"checkpoint {step} cannot be read" in line]
        assert reason in line and (checkpoints / f"{step}.unreadable").is_dir()
    assert "resuming from step 8" in job.output
    assert losses("damaged") == whole


def test_the_disk_full_while_saving(launch, place, losses, whole):
    """A limit on the size of files stands for the disk."""
    full = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40000, "
        "resource.RLIM_INFINITY)); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    shutil.copytree(place / "whole", place / "full")
    for step in (12, 16, 20, 24):
        shutil.rmtree(place / "full" / "checkpoints" / str(step))
    job = launch("full", within=["-c", full])
    assert job.end() == 2, job.output
    assert "is full" in job.output and "Traceback" not in job.output
    again = launch("full")
    assert again.end() == 0, again.output
    assert "resuming from step 8" in again.output
    assert losses("full") == whole


def test_another_config_on_one_host_stops_the_job_before_it_begins(processes, place):
    words = ["train", "small.py", "--run-dir", "never"]
    jobs = processes(["-m", "paxlike"], words, [*words, "--optim.learning-rate", "0.5"])
    assert [job.end() for job in jobs] == [2, 2]
    for job in jobs:
        assert "process 1 on" in job.output and "optim.learning_rate: 0.01 -> 0.5" in job.output, (
            job.output
        )
    assert not (place / "never").exists()


def test_restarts_end_without_progress(launch, place):
    """A crash before the first checkpoint, each time: the launcher gives up after so many."""
    (place / "crash.py").write_text("import os\n\nos._exit(9)\n")
    job = launch("crashing", restarts=1, config="crash.py")
    assert job.end() == 9, job.output
    assert (
        "failure 1 of 1" in job.output
        and "2 failures in a row" in job.output
        and "giving up" in job.output
    )
