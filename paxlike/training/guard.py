"""Loss spikes: detection, and the record of the batches that are skipped because of them.

Detection uses the metrics that the loop reads one step late, so the device never waits for it.

PaLM 540B was restarted from a checkpoint about 100 steps before each spike, and 200 to 500 batches
were skipped: those seen before and during the spike. The spikes did not recur (PaLM, arXiv
2204.02311, section 5.1).
"""

import json
import math
import statistics
from collections import deque
from pathlib import Path

import jax

from paxlike.config import GuardConfig, UserError
from paxlike.training.run_directory import write_text

SMALLEST_DEVIATION = 0.01
"""As a fraction of the median: on a plateau, small fluctuations must not count as spikes."""


class Spike(Exception):
    """The loss spiked at update `update`, and was detected at `detected` (both counted from 0)."""

    def __init__(self, update: int, detected: int, reason: str):
        super().__init__(reason)
        self.update, self.detected, self.reason = update, detected, reason


class Guard:
    """Checks each step's metrics. Every process sees the same values and decides the same."""

    def __init__(self, config: GuardConfig):
        self._config = config
        self._normal_losses: deque[float] = deque(maxlen=config.window)
        self._bad_steps = 0

    def check(self, step: int, loss: float, gradient_norm: float) -> None:
        """Raises Spike if training must not continue after step `step` (counted from 1)."""
        config, finite = self._config, math.isfinite(loss) and math.isfinite(gradient_norm)
        if finite and not self._is_high(loss):
            self._normal_losses.append(loss)
            self._bad_steps = 0
            return
        self._bad_steps += 1
        # With skip_nonfinite, non-finite updates were not applied: a few in a row are tolerated.
        limit = config.patience if finite or config.skip_nonfinite else 1
        if self._bad_steps < limit:
            return
        onset, self._bad_steps = step - self._bad_steps, 0
        if not finite:
            raise Spike(
                onset, step - 1, f"the loss is {loss} and the gradient norm is {gradient_norm}"
            )
        median = statistics.median(self._normal_losses)
        raise Spike(onset, step - 1, f"the loss is {loss:.4f} after a median of {median:.4f}")

    def _is_high(self, loss: float) -> bool:
        if self._config.rewinds == 0 or len(self._normal_losses) < self._config.window:
            return False
        median = statistics.median(self._normal_losses)
        # 1.4826 times the median absolute deviation estimates the standard deviation of a normal
        # distribution, robustly: spikes do not change it.
        deviation = 1.4826 * statistics.median(abs(x - median) for x in self._normal_losses)
        return loss > median + self._config.deviations * max(deviation, SMALLEST_DEVIATION * median)


class SkippedBatches:
    """The batches that training skips, as recorded in the run directory's skipped.json."""

    def __init__(self, folder: Path):
        """Raises UserError if skipped.json exists and cannot be read."""
        self._path = folder / "skipped.json"
        self.rows: list[dict] = []
        if self._path.is_file():
            try:
                self.rows = [_row(**row) for row in json.loads(self._path.read_text())]
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{self._path} cannot be read: {error}. Restore it: it determines which "
                    "batches the run trains on."
                ) from error

    def batch(self, update: int) -> int:
        """Returns the index of the batch that update `update` trains on, both counted from 0."""
        number, end = update, 0
        for first, batches in sorted((row["first_batch"], row["batches"]) for row in self.rows):
            # Rows may overlap: each batch is skipped once.
            first, end = max(first, end), max(first + batches, end)
            if number >= first:
                number += end - first
        return number

    def add(self, first_batch: int, batches: int, reason: str) -> None:
        """Adds a row, and writes the file in process 0."""
        self.rows.append(_row(first_batch, batches, reason))
        if jax.process_index() == 0:
            write_text(self._path, json.dumps(self.rows, indent=2) + "\n")


def _row(first_batch: int, batches: int, reason: str) -> dict:
    if not (
        isinstance(first_batch, int)
        and isinstance(batches, int)
        and first_batch >= 0
        and batches > 0
    ):
        raise ValueError(
            f"first_batch {first_batch!r} must be an integer of at least 0, and batches "
            f"{batches!r} an integer of at least 1"
        )
    return {"first_batch": first_batch, "batches": batches, "reason": str(reason)}
