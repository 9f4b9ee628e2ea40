"""Where a run's numbers are written: metrics.jsonl, TensorBoard, and Weights & Biases where asked for."""

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
    """Appends to a run's files. A line of metrics.jsonl is `{"step": k, …}` or `{"event": name, "step": k, …}`, with `time` (Unix seconds).

    After a restart the steps since the restored checkpoint appear twice: the last line of a step counts. Events, and the lines of every
    `log.every`th step, also have `goodput` (cause -> seconds since the run began, of all attempts), `device_memory` and `joules` (of the
    attempt) where the machine tells. The start event has the inputs of every formula (`accounts.py`).

    A bucket's files cannot be appended to: a local copy is, and sent there whole with every event.
    """

    def __init__(self, folder: Path, config: Config):
        self._folder, self._bucket = folder, None
        if in_bucket(folder):
            self._folder, self._bucket = Path(tempfile.mkdtemp(prefix="paxlike-metrics-")), folder
            if (folder / "metrics.jsonl").exists():
                (self._folder / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes())
        self.path = path = self._folder / "metrics.jsonl"
        # A process that was killed may have left half a line: the next one must not be glued to it.
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = open(path, "a")
        if torn:
            self._file.write("\n")
        self._tensorboard = SummaryWriter(str(self._folder / "tensorboard")) if config.log.tensorboard else None
        self._wandb = _wandb(folder, self._folder, config) if config.log.wandb else None
        self._every = config.log.every

    def step(self, step: int, values: dict[str, float], more: dict[str, object]) -> None:
        """more: what is written to metrics.jsonl only."""
        self._line({"step": step, **values, **more})
        if step % self._every == 0:
            self._points(step, values)

    def event(self, name: str, step: int, **values: object) -> None:
        self._line({"event": name, "step": step, **values})
        if self._tensorboard and name in ("start", "rewind"):
            # What TensorBoard has of later steps is of an attempt that they were lost from.
            began = Event(session_log=SessionLog(status=SessionLog.START))
            self._tensorboard.file_writer.add_event(began, step + 1)
        self._points(step, {f"{name}/{key}": v for key, v in values.items() if isinstance(v, int | float)})
        if self._tensorboard:
            self._tensorboard.flush()
        self._send()

    def close(self) -> None:
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()
        self._send()
        if self._bucket:
            shutil.rmtree(self._folder)

    def _send(self) -> None:
        if not self._bucket:
            return
        for path in [self._folder / "metrics.jsonl", *(self._folder / "tensorboard").glob("*")]:
            target = self._bucket / path.relative_to(self._folder).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())

    def _line(self, values: dict) -> None:
        # JSON has no NaN: a value that is none is written as its name.
        clean = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps({**clean, "time": round(time.time(), 3)}) + "\n")
        self._file.flush()

    def _points(self, step: int, values: dict[str, float]) -> None:
        if self._tensorboard:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log({"step": step, **values})


class NoMetrics(Metrics):
    """For the processes of a job that do not write: all but the first."""

    def __init__(self, folder: Path):
        # In a bucket it is there only after the first event, and from there only the first process has to know what went before.
        self.path = Path(os.devnull) if in_bucket(folder) else folder / "metrics.jsonl"

    def step(self, step: int, values: dict[str, float], more: dict[str, object]) -> None:
        pass

    def event(self, name: str, step: int, **values: object) -> None:
        pass

    def close(self) -> None:
        pass


def _wandb(run: Path, local: Path, config: Config):
    """The Weights & Biases run of the run folder, the same one after each restart. Its x axis is `step`, which a rewind may set back."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            "log.wandb is set, but wandb is not installed: `pip install 'paxlike[wandb]'`, or --log.no-wandb."
        ) from None
    known = run / "wandb.id"
    if not known.is_file():
        known.write_text(uuid.uuid4().hex[:16])
    opened = wandb.init(
        project="paxlike", name=config.name, dir=str(local), config=dataclasses.asdict(config), id=known.read_text(), resume="allow"
    )  # fmt: skip
    opened.define_metric("step")
    opened.define_metric("*", step_metric="step")
    return opened
