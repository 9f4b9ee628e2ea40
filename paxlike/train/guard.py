"""Loss spikes: found from numbers that are read a step late anyway, so that the device never waits; the batches around one are skipped.

PaLM 540B was started again from a checkpoint about 100 steps before a spike, and 200 to 500 batches were skipped, those seen before and
during it; the spikes did not come back (PaLM, section 5.1).
"""

import json
import math
import statistics
from collections import deque
from pathlib import Path

import jax

from paxlike.config import GuardConfig, UserError
from paxlike.train.run import write

SMALLEST_DEVIATION = 0.01
"""Of the median: a loss that has hardly moved for a while must not make a spike of every wiggle."""


class Spike(Exception):
    """The run went wrong at `update` (counted from 0; it was noticed at `noticed`), for `reason`."""

    def __init__(self, update: int, noticed: int, reason: str):
        super().__init__(reason)
        self.update, self.noticed, self.reason = update, noticed, reason


class Guard:
    """Judges each step's numbers. Every process sees the same numbers and judges alike."""

    def __init__(self, config: GuardConfig):
        self._config = config
        self._usual: deque[float] = deque(maxlen=config.window)
        self._run = 0

    def judge(self, step: int, loss: float, gradient_norm: float) -> None:
        """Raises Spike where the numbers of step `step` (counted from 1) are the end of what can be gone on from."""
        config, finite = self._config, math.isfinite(loss) and math.isfinite(gradient_norm)
        if finite and not self._high(loss):
            self._usual.append(loss)
            self._run = 0
            return
        self._run += 1
        # An update that was not made did no harm; many of them in a row get nowhere.
        tolerated = config.patience if finite or config.skip_nonfinite else 1
        if self._run < tolerated:
            return
        onset, self._run = step - self._run, 0
        if not finite:
            raise Spike(onset, step - 1, f"the loss is {loss} and the gradient norm {gradient_norm}")
        usual = statistics.median(self._usual)
        raise Spike(onset, step - 1, f"the loss is {loss:.4f} after a median of {usual:.4f}")

    def _high(self, loss: float) -> bool:
        if self._config.rewinds == 0 or len(self._usual) < self._config.window:
            return False
        usual = statistics.median(self._usual)
        # 1.4826 times the median deviation is the standard deviation of a normal distribution, and spikes do not move it.
        deviation = 1.4826 * statistics.median(abs(x - usual) for x in self._usual)
        return loss > usual + self._config.deviations * max(deviation, SMALLEST_DEVIATION * usual)


class Skipped:
    """The batches that a run never learns from: skipped.json in its folder, ((first batch, batches, reason), …)."""

    def __init__(self, folder: Path):
        """Raises UserError where skipped.json is there and cannot be read."""
        self._path = folder / "skipped.json"
        self.rows: list[dict] = []
        if self._path.is_file():
            try:
                self.rows = [_row(**row) for row in json.loads(self._path.read_text())]
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{self._path} cannot be read: {error}. Restore it; it is part of what was learnt."
                ) from error

    def batch(self, update: int) -> int:
        """The number of the batch that update `update` (both from 0) learns from."""
        number, end = update, 0
        for first, batches in sorted((row["first_batch"], row["batches"]) for row in self.rows):
            # Rows may overlap: a batch is left out once.
            first, end = max(first, end), max(first + batches, end)
            if number >= first:
                number += end - first
        return number

    def add(self, first_batch: int, batches: int, reason: str) -> None:
        """Records it in the run folder (the first process writes)."""
        self.rows.append(_row(first_batch, batches, reason))
        if jax.process_index() == 0:
            write(self._path, json.dumps(self.rows, indent=2) + "\n")


def _row(first_batch: int, batches: int, reason: str) -> dict:
    if not (isinstance(first_batch, int) and isinstance(batches, int) and first_batch >= 0 and batches > 0):
        raise ValueError(f"{first_batch!r} and {batches!r} are no batches")
    return {"first_batch": first_batch, "batches": batches, "reason": str(reason)}
