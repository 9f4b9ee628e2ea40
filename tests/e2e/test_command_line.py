"""The program as a user runs it: separate processes, real signals, real files."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import environment

CONFIG = '''
"""A run of seconds."""
from paxlike.config import *


def config() -> Config:
    return Config(
        name="small",
        model=ModelConfig(
            layers=2, d_model=32, heads=4, kv_heads=1, head_dim=8, d_ff=64, vocab_size=320,
            vocab_multiple=64,
        ),
        data=DataConfig(store="store", sequence_length=32),
        optim=OptimConfig(name="palm", learning_rate=0.05, warmup_steps=10),
        train=TrainConfig(steps=40, batch_size=8),
        checkpoint=CheckpointConfig(every=5),
        eval=EvalConfig(batches=2),
        log=LogConfig(every=5, tensorboard=False, sample="The "),
    )
'''


# A run that stops at a step until it is killed: saving continues in the background.
HELD = """
import os
import threading
from pathlib import Path

from paxlike.training.clock import ReadyClock

watch, seen = ReadyClock.watch, []


def held(clock, arrays):
    watch(clock, arrays)
    seen.append(1)
    if len(seen) == int(os.environ["HOLD_AFTER"]):
        Path("held").touch()
        threading.Event().wait()


ReadyClock.watch = held
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with texts, a prepared store and a config, as a user would have it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "texts").mkdir()
    for number in range(30):
        (folder / "texts" / f"{number}.txt").write_text(
            f"The number {number} is followed by {number + 1}.\n" * 20
        )
    (folder / "small.py").write_text(CONFIG)
    (folder / "held.py").write_text(CONFIG + HELD)
    done = paxlike(
        folder,
        "data",
        "prepare",
        "--input",
        "texts/*.txt",
        "--output",
        "store",
        "--tokenizer",
        "bytes",
        "--validation-fraction",
        "0.2",
    )
    assert done.returncode == 0, done.stderr
    return folder


def paxlike(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "paxlike", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), text=True, capture_output=True, timeout=300
    )


def losses(run: Path) -> dict:
    lines = [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text().splitlines()
        if line.endswith("}")
    ]
    return {line["step"]: line["loss"] for line in lines if "event" not in line}


@pytest.fixture(scope="module")
def whole(place):
    """A run that nothing disturbed."""
    done = paxlike(place, "train", "small.py", "--run-dir", "whole")
    assert done.returncode == 0, done.stderr
    return place / "whole", done


def test_train_shows_progress_a_sample_and_the_run_folder(whole):
    run, done = whole
    found = losses(run)
    assert list(found) == list(range(1, 41)) and found[40] < found[1] - 1
    for expected in (
        "compiled the train step",
        "step 40/40 | loss",
        "tokens/s",
        "MFU",
        "left",
        "sample:\nThe ",
        f"run directory: {run}",
    ):
        assert expected in done.stdout
    assert "Traceback" not in done.stderr


def test_killed_and_resumed_equals_the_undisturbed_run(place, whole):
    """kill -9 some steps after a checkpoint is whole, twice; then to the end."""
    run = place / "killed"
    for hold_after, newest in ((8, 5), (12, 15)):
        process = subprocess.Popen(
            [sys.executable, "-m", "paxlike", "train", "held.py", "--run-dir", "killed"],
            cwd=place,
            env=environment(HOLD_AFTER=str(hold_after)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 300
        while not ((place / "held").exists() and (run / "checkpoints" / str(newest)).is_dir()):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (place / "held").unlink()
    done = paxlike(place, "train", "small.py", "--run-dir", "killed")
    assert done.returncode == 0, done.stderr
    assert "resuming from step 15" in done.stdout
    assert losses(run) == losses(whole[0])


def test_sigterm_saves_and_exits_cleanly(place, whole):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "paxlike",
            "train",
            "small.py",
            "--run-dir",
            "stopped",
            "--train.steps",
            "1000000",
        ],
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in error, error
    assert "resume with --run-dir" in out
    step = max(losses(place / "stopped"))
    assert (place / "stopped" / "checkpoints" / str(step)).is_dir()


def test_eval_and_generate(place, whole):
    done = paxlike(place, "eval", "whole", "--batches", "2")
    assert done.returncode == 0, done.stderr
    event = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()][-2]
    assert event["event"] == "evaluation" and f"loss {event['loss']:.4f}" in done.stdout
    again = [
        paxlike(place, "generate", "whole", "The ", "--max-new-tokens", "20", "--seed", "3")
        for _ in range(2)
    ]
    assert again[0].returncode == 0, again[0].stderr
    assert again[0].stdout.startswith("The ") and again[0].stdout == again[1].stdout
    dashed = paxlike(place, "generate", "whole", "--max-new-tokens", "4", "--", "--item")
    assert dashed.stdout.startswith("--item"), dashed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "small.py", "--train.stpes", "3"), "--train.steps"),
        (("train", "small.py", "--model.kv-heads", "3"), "choose kv_heads among"),
        (("train", "smal.py"), "Did you mean small.py"),
        (
            ("train", "small.py", "--fake-devices", "8", "--mesh.model", "3"),
            "does not fit 8 devices",
        ),
        (("train", "small.py", "--data.store", "elsewhere"), "elsewhere"),
        (
            ("train", "small.py", "--run-dir", "whole", "--optim.learning-rate", "9"),
            "belongs to another config",
        ),
        (("train", "small.py", "--run-dir", "texts"), "is not a run directory"),
        (("generate", "texts", "x"), "is not a run directory"),
        (
            ("generate", "whole", "- x", "--max-new-tokens", "90"),
            "the model's context is 32 tokens",
        ),
        (("generate", "whole", "x", "--temperature", "-1"), "temperature is -1.0"),
        (("generate", "whole", "a\udcffb"), "PROMPT is not valid UTF-8"),
        (("generate", "whole", "--seed", "3"), "requires PROMPT first"),
        (("serve", "missing", "--port", "99999"), "--port is 99999; it must be from 0 to 65535"),
        (("serve", "missing", "--host", "no.such.host.invalid"), "cannot listen at no.such.host"),
        (("data", "prepare", "--input", "nothing/*.txt", "--output", "new"), "nothing/*.txt"),
        (("data", "prepare", "--input", "texts/*.txt", "--output", "store"), "store"),
        (("trian", "small.py"), "Did you mean 'train'"),
    ],
)
def test_mistakes_get_one_message_and_exit_code_2(place, whole, arguments, message):
    done = paxlike(place, *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split()), done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_leaves_earlier_checkpoints_readable(place, whole):
    """A limit on file sizes stands for the disk: every write beyond 16 KiB fails, as on a full
    one.
    """
    first = paxlike(place, "train", "small.py", "--run-dir", "full", "--train.steps", "10")
    assert first.returncode == 0, first.stderr

    limited = (
        "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16384, resource.RLIM_INFINITY)); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [
        sys.executable,
        "-c",
        limited,
        "-m",
        "paxlike",
        "train",
        "small.py",
        "--run-dir",
        "full",
    ]
    done = subprocess.run(
        command, cwd=place, env=environment(), text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 2, done.stderr
    assert (
        "is full" in done.stderr
        and "earlier checkpoints [5, 10] are complete" in done.stderr
        and "Traceback" not in done.stderr
    )
    again = paxlike(place, "train", "small.py", "--run-dir", "full")
    assert again.returncode == 0, again.stderr
    assert "resuming from step 10" in again.stdout
    assert losses(place / "full") == losses(whole[0])


def test_info_needs_no_jax(place):
    """JAX cannot be imported here, and `info` answers all the same."""
    (place / "blocked" / "jax").mkdir(parents=True)
    (place / "blocked" / "jax" / "__init__.py").write_text("raise ImportError('jax was imported')")
    env = environment()
    env["PYTHONPATH"] = f"{place / 'blocked'}:{env['PYTHONPATH']}"
    root = Path(__file__).resolve().parents[2]
    command = [
        sys.executable,
        "-m",
        "paxlike",
        "info",
        str(root / "configs" / "palm_540b.py"),
        "--json",
    ]
    done = subprocess.run(command, cwd=place, env=env, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"]["total"] == 540_356_474_880
