"""What a run folder tells of its run, read from metrics.jsonl: also of a run that is damaged, in progress, or was restarted.

Whatever is whole is used; whatever is not is counted and said in `notes`. Nothing here needs JAX or the machine that trained.
"""

import dataclasses
import fcntl
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from paxlike.accounting.booking import Booking
from paxlike.config import UserError

SERIES = ("loss", "step_seconds", "tokens_per_second", "mfu", "hfu", "learning_rate", "gradient_norm")


@dataclasses.dataclass
class Attempt:
    """One process's part of a run: from a `start` event to the next one."""

    start: dict
    """The start event; {} where it was lost."""
    first_step: int
    """Updates that the attempt found made already."""
    last_step: int
    end: str | None = None
    """`finish`, or `stop` by a signal; None where the attempt said neither."""
    signal: str | None = None
    compiled: dict | None = None
    """Memory of the compiled step (compile event), of the last batch shape."""
    device_memory: dict | None = None
    """{"in_use", "peak", "limit"} in bytes, as the device last said."""
    joules: float | None = None


@dataclasses.dataclass
class History:
    folder: Path
    name: str
    planned_steps: int | None
    steps: np.ndarray
    """Step numbers, ascending, each once: the last line of a step counts."""
    attempt_of: np.ndarray
    """Which attempt did the step (index into `attempts`)."""
    series: dict[str, np.ndarray]
    """Name (SERIES) -> value at each of `steps`; NaN where there is none."""
    evaluations: list[tuple[int, float]]
    """(step, validation loss), ascending."""
    attempts: list[Attempt]
    goodput: dict[str, float]
    """Cause -> seconds."""
    notes: list[str]
    running: bool
    """A process of this machine is training in the folder."""


def read_history(folder: Path) -> History:
    """Reads a run folder. Raises UserError where it is none, or where it has nothing to report yet."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        what = "is not there" if not folder.exists() else "is no run folder: it has no metrics.jsonl"
        raise UserError(f"{folder} {what}. Name a folder that `paxlike train` has written.")
    notes: list[str] = []
    lines = list(_lines(path, notes))
    if not lines:
        raise UserError(f"{path} has no whole line yet: there is nothing to report. Wait for the run's first step.")
    name, planned = _config(folder, notes)
    reader = _Reader()
    for line in lines:
        reader.line(line)
    running = reader.attempts[-1].end is None and _locked(folder)
    notes += reader.notes(planned, running)
    steps = np.array(sorted(reader.values), dtype=np.int64)
    rows = [reader.values[step] for step in steps.tolist()]
    return History(
        folder, name, planned, steps, np.array([row[0] for row in rows], dtype=np.int64),
        {name: np.array([row[1 + k] for row in rows], dtype=float) for k, name in enumerate(SERIES)},
        sorted(reader.evaluations.items()), reader.attempts, reader.booking.seconds(), notes, running,
    )  # fmt: skip


def earlier_booking(path: Path) -> Booking:
    """Where the wall time of a run went so far, by its metrics.jsonl; empty where there was no attempt yet."""
    booking = Booking()
    for line in _lines(path, []):
        booking.add(line)
    return booking


class _Reader:
    """Folds lines in the order of the file."""

    def __init__(self):
        self.booking = Booking()
        self.attempts: list[Attempt] = []
        self.values: dict[int, list] = {}
        self.evaluations: dict[int, float] = {}
        self.not_finite: list[int] = []

    def line(self, line: dict) -> None:
        self.booking.add(line)
        step, event = line["step"], line.get("event")
        if event == "start" or not self.attempts:
            self.attempts.append(Attempt(line if event == "start" else {}, step, step))
        attempt = self.attempts[-1]
        attempt.last_step = max(attempt.last_step, step)
        if isinstance(line.get("device_memory"), dict):
            attempt.device_memory = line["device_memory"]
        if (joules := number(line.get("joules"))) is not None:
            attempt.joules = joules
        if event is None:
            self.values[step] = [len(self.attempts) - 1, *(_or_nan(line.get(name)) for name in SERIES)]
            if isinstance(line.get("loss"), str) or isinstance(line.get("gradient_norm"), str):
                self.not_finite.append(step)
        elif event == "evaluation" and (loss := number(line.get("loss"))) is not None:
            self.evaluations[step] = loss
        elif event == "compile" and isinstance(line.get("memory"), dict):
            attempt.compiled = line["memory"]
        elif event in ("finish", "stop"):
            attempt.end, attempt.signal = event, line.get("signal")

    def notes(self, planned: int | None, running: bool) -> Iterator[str]:
        if self.not_finite:
            steps = f"{_many(len(self.not_finite), 'step')}, first at step {self.not_finite[0]}"
            yield f"the loss or the gradient norm was not finite at {steps}."
        if self.booking.clock_jumps:
            yield (
                f"the clock went backwards {_many(self.booking.clock_jumps, 'time')} (it was set, or the run moved to another machine): "
                "nothing is booked for the jumps."
            )
        if not self.attempts[0].start:
            yield "the beginning of the file is missing: the first attempt's device and peak are not known."
        for number, (before, after) in enumerate(zip(self.attempts, self.attempts[1:], strict=False), 2):
            how = {"finish": "was finished", "stop": f"was stopped by {before.signal}", None: "ended without a word"}
            lost = before.last_step - after.first_step
            again = f"; {_many(lost, 'step')} done again" if lost > 0 else ""
            mesh = _mesh(after.start)
            moved = f"; now on {mesh}" if mesh != _mesh(before.start) and mesh and before.start else ""
            yield f"attempt {number} went on from step {after.first_step}: the one before {how[before.end]}{again}{moved}."
        last = self.attempts[-1]
        if running:
            yield f"the run is in progress: a process of this machine is training; this is what it had done by step {last.last_step}."
        elif last.end is None:
            yield (
                f"the run is not finished: its last attempt says neither `finish` nor `stop` after step {last.last_step} "
                "(killed, or in progress on another machine)."
            )
        elif last.end == "stop":
            yield f"the run was stopped by {last.signal} at step {last.last_step}" + (
                f" of {planned}." if planned else "."
            )


def number(value: object) -> float | None:
    """A finite JSON number, else None."""
    return float(value) if type(value) in (float, int) and abs(value) < 1e300 else None  # NaN is not less either


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _or_nan(value: object) -> float:
    found = number(value)
    return math.nan if found is None else found


def _mesh(start: dict) -> str:
    mesh = start.get("mesh")
    if not isinstance(mesh, dict):
        return ""
    return f"{start.get('devices')} x {start.get('device')}, " + " x ".join(f"{axis} {n}" for axis, n in mesh.items())


def _lines(path: Path, notes: list[str]) -> Iterator[dict]:
    """The whole lines of metrics.jsonl; what was skipped goes to `notes`."""
    skipped, torn = 0, False
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                line = None
            step = line.get("step") if isinstance(line, dict) else None
            if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53:
                yield line
            elif not text.endswith("\n"):
                torn = True
            elif text.strip():
                skipped += 1
    if torn:
        notes.append("the last line of metrics.jsonl is cut short and was left out.")
    if skipped:
        notes.append(f"{_many(skipped, 'line')} of metrics.jsonl cannot be read: skipped.")


def _config(folder: Path, notes: list[str]) -> tuple[str, int | None]:
    """(name, planned steps) by config.json, read leniently: a report needs no more of it."""
    try:
        values = json.loads((folder / "config.json").read_text())
        name, steps = values["name"], values["train"]["steps"]
        if isinstance(name, str) and isinstance(steps, int):
            return name, steps
        raise TypeError("name or train.steps is of another type")
    except (OSError, ValueError, KeyError, TypeError) as error:
        notes.append(f"config.json cannot be used ({type(error).__name__}: {error}): the planned steps are not known.")
        return folder.name, None


def _locked(folder: Path) -> bool:
    """Whether a process of this machine holds the run folder's lock (`train/run.py`)."""
    try:
        lock = os.open(folder / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back at once
        return False
    except OSError:
        return True
    finally:
        os.close(lock)
