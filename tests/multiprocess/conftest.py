"""Jobs of real processes on this machine, and the run that nothing disturbs."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from programs import ROOT, environment

SECRET = "not-to-be-seen-anywhere"
CONFIG = '''
"""A run of seconds."""
from paxlike.config import *
from paxlike.training import peak_flops

peak_flops.SIDE = 256  # Measures the peak for MFU in milliseconds.


def config() -> Config:
    return Config(
        name="small",
        model=ModelConfig(
            layers=1, d_model=32, heads=4, kv_heads=1, head_dim=8, d_ff=64, vocab_size=320,
            vocab_multiple=64,
        ),
        data=DataConfig(store="store", sequence_length=32),
        optim=OptimConfig(name="adamw", schedule="constant", learning_rate=0.01, warmup_steps=2),
        train=TrainConfig(steps=24, batch_size=8),
        checkpoint=CheckpointConfig(every=4, keep=50),
        eval=EvalConfig(batches=2),
        log=LogConfig(every=4, tensorboard=False),
        precision=PrecisionConfig(compute="float32"),
    )
'''
# Steps and saves of some tenths of a second: what befalls such a run befalls it before its end, on
# the fastest machine too. The process whose number is in the file `hold` stops after step
# 12, and the others wait for it in step 13; it says so by the file `held`.
PACED = """
import os
import threading
import time
from pathlib import Path

import jax

from paxlike.training.clock import ReadyClock

watch, rename, steps = ReadyClock.watch, os.rename, []


def late_watch(clock, arrays):
    time.sleep(0.15)
    watch(clock, arrays)
    steps.append(1)
    hold = Path("hold").read_text() if Path("hold").exists() else None
    if len(steps) == 12 and hold == str(jax.process_index()):
        Path("held").touch()
        threading.Event().wait()


def late_rename(source, target, **places):
    if "checkpoints" in str(source):
        time.sleep(0.3)
    rename(source, target, **places)


ReadyClock.watch, os.rename = late_watch, late_rename
"""


class Process:
    """A program that is running, and what it has written so far."""

    def __init__(self, place: Path, command: list[str]):
        self.begin = time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=place,
            env=environment(WANDB_API_KEY=SECRET),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(
            target=lambda: self.lines.extend(self.process.stdout), daemon=True
        )
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def pids(self) -> list[int]:
        """Of a launcher: its processes, those of the last attempt."""
        return [
            int(pid)
            for pid in re.findall(r"\[launch\] started processes ([\d ]+);", self.output)[
                -1
            ].split()
        ]

    def until(self, condition) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.002)

    def end(self) -> int:
        """The exit code."""
        try:
            code = self.process.wait(600)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGTERM)
            raise AssertionError(self.output) from None
        self._reader.join(10)
        return code


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with a prepared store and two configs of one run, one of them slow enough to be
    disturbed.
    """
    folder = tmp_path_factory.mktemp("place")
    (folder / "texts").mkdir()
    for number in range(30):
        (folder / "texts" / f"{number}.txt").write_text(
            f"The number {number} is followed by {number + 1}.\n" * 20
        )
    (folder / "small.py").write_text(CONFIG)
    (folder / "paced.py").write_text(CONFIG + PACED)
    prepare = [
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
    ]
    done = Process(folder, [sys.executable, "-m", "paxlike", *prepare])
    assert done.end() == 0, done.output
    return folder


@pytest.fixture(scope="session")
def launch(place):
    """launch(run, *flags, hosts=2, …) -> the launcher's Process. `within`: what Python runs it
    with, instead of by itself.
    """

    def start(
        run: str, *flags: str, hosts=2, devices=1, restarts=0, config="small.py", within=()
    ) -> Process:
        command = [
            str(ROOT / "launch" / "local.py"),
            "--hosts",
            str(hosts),
            "--devices-per-host",
            str(devices),
        ]
        command += ["--restarts", str(restarts), config, "--run-dir", run, *flags]
        return Process(place, [sys.executable, *within, *command])

    return start


@pytest.fixture(scope="session")
def processes(place):
    """processes(program, words of process 0, words of process 1, …): one Process each, that work
    together.
    """

    def start(program: list[str], *words: list[str]) -> list[Process]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        return [
            Process(
                place,
                [
                    sys.executable,
                    *program,
                    *own,
                    "--fake-devices",
                    "1",
                    "--hosts.coordinator",
                    address,
                    "--hosts.count",
                    str(len(words)),
                    "--hosts.id",
                    str(k),
                ],
            )
            for k, own in enumerate(words)
        ]

    return start


def read(folder: Path) -> list[dict]:
    return [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        if line.endswith("}")
    ]


@pytest.fixture(scope="session")
def losses(place):
    """losses(run) -> {step: loss}, the last line of a step counts."""
    return lambda run: {
        line["step"]: line["loss"] for line in read(place / run) if "event" not in line
    }


@pytest.fixture(scope="session")
def fingerprints(place):
    """fingerprints(run) -> {step: fingerprint of its batch}."""
    return lambda run: {
        line["step"]: line["batch_fingerprint"] for line in read(place / run) if "event" not in line
    }


@pytest.fixture(scope="session")
def whole(launch, losses):
    """The losses of the run that nothing disturbed."""
    job = launch("whole", "--deterministic")
    assert job.end() == 0, job.output
    found = losses("whole")
    assert list(found) == list(range(1, 25)) and found[24] < found[1] - 1
    return found


@pytest.fixture(scope="session")
def secret() -> str:
    """The value of an API key in every process's environment."""
    return SECRET


@pytest.fixture
def reached(place):
    """reached(run, step): whether the run has finished that step."""

    def check(run: str, step: int) -> bool:
        path = place / run / "metrics.jsonl"
        return path.exists() and any(
            line.get("step", 0) >= step for line in read(place / run) if "event" not in line
        )

    return check


@pytest.fixture(scope="session")
def recovery():
    """Measured seconds from each fault until training went on, shown at the end (see
    docs/hosts.md).
    """
    seconds: dict[str, float] = {}
    yield seconds
    print("\n" + "\n".join(f"{fault}: {value:.1f} s" for fault, value in seconds.items()))
