"""Writes a run's metrics to metrics.jsonl and, if enabled, to TensorBoard and Weights & Biases."""

import dataclasses
import json
import math
import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path

from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from paxlike.config import Config, UserError
from paxlike.data.location import in_bucket


class Metrics:
    """Appends to a run's files.

    A line of metrics.jsonl is `{"step": k, ...}` or `{"event": name, "step": k, ...}`, with `time`
    in Unix seconds. After a restart, the steps since the restored checkpoint appear twice: the last
    line of a step counts. Events, and the lines of every `log.every`-th step, also have `goodput`
    (seconds by cause since the start of the run, over all attempts) and, if the hardware reports
    them, `device_memory` and `joules` (of this attempt). The start event has the inputs of every
    formula (`accounting.py`).

    Files in a bucket cannot be appended to: a local copy is, and every event uploads it.
    """

    def __init__(self, folder: Path, config: Config):
        self._folder, self._bucket = folder, None
        if in_bucket(folder):
            self._folder, self._bucket = Path(tempfile.mkdtemp(prefix="paxlike-metrics-")), folder
            if (folder / "metrics.jsonl").exists():
                (self._folder / "metrics.jsonl").write_bytes(
                    (folder / "metrics.jsonl").read_bytes()
                )
        self.path = path = self._folder / "metrics.jsonl"
        _end_last_line(path)
        self._file = open(path, "a")
        self._tensorboard = (
            SummaryWriter(str(self._folder / "tensorboard")) if config.log.tensorboard else None
        )
        self._wandb = _wandb(folder, self._folder, config) if config.log.wandb else None
        self._every = config.log.every

    def step(self, step: int, values: dict[str, float], more: dict[str, object]) -> None:
        """Writes a step's metrics. more: fields for metrics.jsonl only."""
        self._write_line({"step": step, **values, **more})
        if step % self._every == 0:
            self._write_points(step, values)

    def event(self, name: str, step: int, **values: object) -> None:
        self._write_line({"event": name, "step": step, **values})
        if self._tensorboard and name in ("start", "rewind"):
            # Makes TensorBoard drop later steps, which an earlier attempt wrote and lost.
            session_start = Event(session_log=SessionLog(status=SessionLog.START))
            self._tensorboard.file_writer.add_event(session_start, step + 1)
        self._write_points(
            step, {f"{name}/{key}": v for key, v in values.items() if isinstance(v, int | float)}
        )
        if self._tensorboard:
            self._tensorboard.flush()
        self._upload()

    def close(self) -> None:
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()
        self._upload()
        if self._bucket:
            shutil.rmtree(self._folder)

    def _upload(self) -> None:
        if not self._bucket:
            return
        for path in [self._folder / "metrics.jsonl", *(self._folder / "tensorboard").glob("*")]:
            target = self._bucket / path.relative_to(self._folder).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())

    def _write_line(self, values: dict) -> None:
        # JSON has no NaN or infinity: they are written as strings.
        clean = {
            k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in values.items()
        }
        self._file.write(json.dumps({**clean, "time": round(time.time(), 3)}) + "\n")
        self._file.flush()

    def _write_points(self, step: int, values: dict[str, float]) -> None:
        if self._tensorboard:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log({"step": step, **values})


class NoMetrics(Metrics):
    """Writes nothing. For the processes of a job other than 0."""

    def __init__(self, folder: Path):
        # A bucket's file exists only after the first event, and only process 0 needs its history.
        self.path = Path(os.devnull) if in_bucket(folder) else folder / "metrics.jsonl"

    def step(self, step: int, values: dict[str, float], more: dict[str, object]) -> None:
        pass

    def event(self, name: str, step: int, **values: object) -> None:
        pass

    def close(self) -> None:
        pass


def _wandb(run: Path, local: Path, config: Config):
    """Opens the Weights & Biases run of a run directory: the same run after each restart.

    Its x axis is `step`, because a rewind lowers the step number.
    """
    try:
        import wandb
    except ImportError:
        raise UserError(
            "log.wandb is set, but wandb is not installed: `pip install 'paxlike[wandb]'`, or pass "
            "--log.no-wandb."
        ) from None
    id_file = run / "wandb.id"
    if not id_file.is_file():
        id_file.write_text(uuid.uuid4().hex[:16])
    opened = wandb.init(
        project="paxlike",
        name=config.name,
        dir=str(local),
        config=dataclasses.asdict(config),
        id=id_file.read_text(),
        resume="allow",
    )
    opened.define_metric("step")
    opened.define_metric("*", step_metric="step")
    return opened


def _end_last_line(path: Path) -> None:
    """Removes a partial last line, which a killed process left, or completes it with its end."""
    content = path.read_bytes() if path.exists() else b""
    last = content.rpartition(b"\n")[2]
    if not last:
        return
    with open(path, "r+b") as file:
        try:
            json.loads(last)
        except ValueError:
            file.truncate(len(content) - len(last))
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
