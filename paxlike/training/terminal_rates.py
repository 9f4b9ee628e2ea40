"""What the terminal shows of a step: rates averaged over about ten steps, and implausible MFU."""

from paxlike.accounting.throughput import STEPS_FOR_WARNINGS
from paxlike.training.accounting import RunAccounting
from paxlike.training.console import Console


class TerminalRates:
    def __init__(self, accounting: RunAccounting, console: Console, steps: int):
        """steps: of the whole run."""
        self._accounting, self._console, self._steps = accounting, console, steps
        self._seconds: float | None = None
        self._timed, self._warned = 0, False

    def show(self, step: int, values: dict[str, float], tokens: int) -> None:
        """Shows a step. values: its metrics, with `step_seconds`. tokens: of its batch.

        The files have each step's own rates.
        """
        seconds = values["step_seconds"]
        average = 0.9 * (self._seconds or seconds) + 0.1 * seconds
        self._seconds, self._timed = average, self._timed + 1
        if not self._warned and self._timed >= STEPS_FOR_WARNINGS:
            warning = self._accounting.utilization(tokens / average)[1]
            if warning:
                self._warned = True
                self._console.say(f"WARNING: {warning}")
        smoothed = {
            name: values[name] * seconds / average
            for name in ("tokens_per_second", "mfu", "hfu")
            if name in values
        }
        self._console.step(step, values | smoothed, (self._steps - step) * average)
