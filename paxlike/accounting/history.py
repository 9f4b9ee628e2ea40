"""Reads the history of a run from metrics.jsonl, even if it is damaged, in progress, or resumed.

Uses every valid line, and reports what is missing or invalid in `notes`. Needs neither JAX nor the
machine that trained.
"""

import dataclasses
import fcntl
import itertools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from paxlike.accounting.goodput import RecordedGoodput
from paxlike.accounting.router_series import is_router_metric
from paxlike.config import UserError

SERIES = (
    "loss",
    "step_seconds",
    "tokens_per_second",
    "mfu",
    "hfu",
    "learning_rate",
    "gradient_norm",
)


@dataclasses.dataclass
class Attempt:
    """One process's part of a run: from a `start` event to the next one."""

    start: dict
    """The start event, or {} if it is missing."""
    first_step: int
    """Number of updates before the attempt."""
    last_step: int
    end: str | None = None
    """`finish`, `stop` after a signal, or `fail`. None if the attempt recorded none of them."""
    signal: str | None = None
    reason: str | None = None
    """Why the attempt failed."""
    compiled: dict | None = None
    """Memory of the step compiled for the last batch shape (compile event)."""
    device_memory: dict | None = None
    """The last {"in_use", "peak", "limit"} that the device reported, in bytes."""
    joules: float | None = None


@dataclasses.dataclass
class History:
    folder: Path
    name: str
    planned_steps: int | None
    steps: np.ndarray
    """Step numbers, ascending and unique. The last line of a step counts."""
    attempt_of: np.ndarray
    """The attempt that ran each step (index into `attempts`)."""
    series: dict[str, np.ndarray]
    """Name (SERIES) -> value at each of `steps`, NaN if missing."""
    routers: dict[str, np.ndarray]
    """The same for the metrics of routers that the run has (`router_series.py`)."""
    evaluations: list[tuple[int, float]]
    """(step, validation loss), ascending."""
    mixture: dict[str, dict[str, float | None]]
    """Store of a mixture -> its `loss` and `epochs` at the last evaluation."""
    attempts: list[Attempt]
    goodput: dict[str, float]
    """Cause -> seconds."""
    notes: list[str]
    running: bool
    """Whether a process on this machine is training in the directory."""


def read_history(folder: Path) -> History:
    """Reads a run directory. Raises UserError if it is not one, or has nothing to report yet."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        problem = (
            "is not a run directory: it has no metrics.jsonl"
            if folder.exists()
            else "does not exist"
        )
        raise UserError(f"{folder} {problem}. Specify a directory written by `paxlike train`.")
    notes: list[str] = []
    lines = list(_lines(path, notes))
    if not lines:
        raise UserError(
            f"{path} has no complete line yet, so there is nothing to report. Wait for the run's "
            "first step."
        )
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
        {
            name: np.array([row[1 + k] for row in rows], dtype=float)
            for k, name in enumerate(SERIES)
        },
        _columns(steps, reader.routers), sorted(reader.evaluations.items()), reader.mixture,
        reader.attempts, reader.goodput.seconds(), notes, running,
    )  # fmt: skip


def recorded_goodput(path: Path) -> RecordedGoodput:
    """Reads the goodput of a run so far from its metrics.jsonl."""
    goodput = RecordedGoodput()
    for line in _lines(path, []):
        goodput.add(line)
    return goodput


class _Reader:
    """Collects the contents of lines, in the order of the file."""

    def __init__(self) -> None:
        self.goodput = RecordedGoodput()
        self.attempts: list[Attempt] = []
        self.values: dict[int, list] = {}
        self.routers: dict[int, dict[str, float]] = {}
        self.evaluations: dict[int, float] = {}
        self.mixture: dict[str, dict[str, float | None]] = {}
        self.not_finite: list[int] = []

    def line(self, line: dict) -> None:
        self.goodput.add(line)
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
            self.values[step] = [
                len(self.attempts) - 1,
                *(_or_nan(line.get(name)) for name in SERIES),
            ]
            self.routers[step] = {
                name: _or_nan(value) for name, value in line.items() if is_router_metric(name)
            }
            if isinstance(line.get("loss"), str) or isinstance(line.get("gradient_norm"), str):
                self.not_finite.append(step)
        elif event == "evaluation" and (loss := number(line.get("loss"))) is not None:
            self.evaluations[step] = loss
            epochs = line.get("epochs")
            for name, value in (epochs if isinstance(epochs, dict) else {}).items():
                losses = {"loss": number(line.get(f"loss {name}")), "epochs": number(value)}
                self.mixture[name] = losses
        elif event == "compile" and isinstance(line.get("memory"), dict):
            attempt.compiled = line["memory"]
        elif event in ("finish", "stop", "fail"):
            attempt.end, attempt.signal = event, line.get("signal")
            attempt.reason = line.get("reason")

    def notes(self, planned: int | None, running: bool) -> Iterator[str]:
        if self.not_finite:
            steps = f"{_many(len(self.not_finite), 'step')}, first at step {self.not_finite[0]}"
            yield f"the loss or the gradient norm was not finite at {steps}."
        if self.goodput.clock_jumps:
            yield (
                f"the clock went backwards {_many(self.goodput.clock_jumps, 'time')} (it was set, "
                "or the run moved to another machine); no time is counted for the jumps."
            )
        if not self.attempts[0].start:
            yield (
                "the beginning of the file is missing: the first attempt's device and peak are "
                "unknown."
            )
        for number, (before, after) in enumerate(itertools.pairwise(self.attempts), 2):
            yield _resume_note(number, before, after)
        last = self.attempts[-1]
        if running:
            yield (
                "the run is in progress: a process on this machine is training. This report covers "
                f"it up to step {last.last_step}."
            )
        elif last.end == "fail":
            yield f"the run failed at step {last.last_step}: {last.reason}."
        elif last.end is None:
            not_finite = last.last_step in self.not_finite
            cause = "its loss was not finite, or it is" if not_finite else "killed, or"
            yield (
                "the run is not finished: its last attempt recorded no end after step "
                f"{last.last_step} ({cause} in progress on another machine)."
            )
        elif last.end == "stop":
            yield f"the run was stopped by {last.signal} at step {last.last_step}" + (
                f" of {planned}." if planned else "."
            )


def _resume_note(number: int, before: Attempt, after: Attempt) -> str:
    ends = {
        "finish": "finished",
        "stop": f"was stopped by {before.signal}",
        "fail": f"failed ({before.reason})",
        None: "did not record its end",
    }
    lost = before.last_step - after.first_step
    repeated = f"; {_many(lost, 'step')} repeated" if lost > 0 else ""
    mesh = _mesh(after.start)
    moved = f"; now on {mesh}" if mesh != _mesh(before.start) and mesh and before.start else ""
    return (
        f"attempt {number} resumed from step {after.first_step}: the previous attempt "
        f"{ends[before.end]}{repeated}{moved}."
    )


def _columns(steps: np.ndarray, rows: dict[int, dict[str, float]]) -> dict[str, np.ndarray]:
    """Name -> value at each step, NaN if missing."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {
        name: np.array([rows[step].get(name, math.nan) for step in steps.tolist()], dtype=float)
        for name in names
    }


def number(value: object) -> float | None:
    """Returns a finite JSON number, or None."""
    # The comparison is false for NaN, too.
    if isinstance(value, bool) or not isinstance(value, float | int):
        return None
    return float(value) if abs(value) < 1e300 else None


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _or_nan(value: object) -> float:
    found = number(value)
    return math.nan if found is None else found


def _mesh(start: dict) -> str:
    mesh = start.get("mesh")
    if not isinstance(mesh, dict):
        return ""
    return f"{start.get('devices')} x {start.get('device')}, " + " x ".join(
        f"{axis} {n}" for axis, n in mesh.items()
    )


def _lines(path: Path, notes: list[str]) -> Iterator[dict]:
    """Yields the valid lines of metrics.jsonl. Reports skipped lines in `notes`."""
    skipped, truncated = 0, False
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
                truncated = True
            elif text.strip():
                skipped += 1
    if truncated:
        notes.append("the last line of metrics.jsonl is truncated and was skipped.")
    if skipped:
        notes.append(f"{_many(skipped, 'line')} of metrics.jsonl could not be read; skipped.")


def _config(folder: Path, notes: list[str]) -> tuple[str, int | None]:
    """Returns (name, planned steps) from config.json. A report needs no other field to be valid."""
    try:
        values = json.loads((folder / "config.json").read_text())
        name, steps = values["name"], values["train"]["steps"]
        if isinstance(name, str) and isinstance(steps, int):
            return name, steps
        raise TypeError("name or train.steps has the wrong type")
    except (OSError, ValueError, KeyError, TypeError) as error:
        notes.append(
            f"config.json cannot be used ({type(error).__name__}: {error}): the planned steps are "
            "unknown."
        )
        return folder.name, None


def _locked(folder: Path) -> bool:
    """Whether a process on this machine holds the run's lock (`training/run_directory.py`)."""
    try:
        lock = os.open(folder / ".lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # Closing the file releases the lock.
        return False
    except OSError:
        return True
    finally:
        os.close(lock)
