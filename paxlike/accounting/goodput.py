"""Computes goodput from the lines of metrics.jsonl, even if attempts were killed.

Some lines record `goodput`: cause -> seconds since the run began, over all attempts. After the last
record of a killed attempt, the duration of each step is known and the remaining time is `other`.
The time from the last line of an attempt to the first line of the next is `restart`. An attempt
repeats the steps after the checkpoint that it resumes from: the time of their first execution moves
to `repeated steps`.
"""

from collections.abc import Mapping

from paxlike.accounting.throughput import CAUSES, PRODUCTIVE


class RecordedGoodput:
    """The wall time of a run by cause, up to the last line passed to `add`."""

    def __init__(self) -> None:
        self.clock_jumps = 0
        """Number of lines with an earlier time than the previous line. They add no time."""
        self.empty = True
        self._seconds = dict.fromkeys(CAUSES, 0.0)
        self._steps: dict[int, float] = {}
        """Step -> seconds of its last execution, counted as productive."""
        self._since_record = 0.0
        """Seconds of the steps after the last line with `goodput`."""
        self._passed = 0.0
        """Wall time in seconds since that line."""
        self._last: float | None = None

    def add(self, line: Mapping) -> None:
        """Adds the next line of metrics.jsonl (`training/metrics.py`)."""
        now = _number(line.get("time"))
        if line.get("event") == "start" and not self.empty:
            self._restart(int(line["step"]), now)
        else:
            self._pass(now)
        if "event" not in line and (seconds := _number(line.get("step_seconds"))) is not None:
            self._steps[int(line["step"])] = max(0.0, seconds)
            self._since_record += max(0.0, seconds)
        if record := _record(line.get("goodput")):
            self._seconds, self._since_record, self._passed = record, 0.0, 0.0
        self.empty = False

    def seconds(self) -> dict[str, float]:
        """Returns cause -> seconds until the last line."""
        seconds = dict(self._seconds)
        # A step's line is written during the next step, so the first step began before the record.
        steps = min(self._since_record, self._passed) if self._passed else self._since_record
        seconds[PRODUCTIVE] += steps
        seconds["other"] += max(0.0, self._passed - steps)
        return seconds

    def resumed_at(self, step: int, now: float | None) -> tuple[dict[str, float], float]:
        """Returns what an attempt that resumes from `step` inherits.

        Returns (cause -> seconds of the earlier attempts, seconds from their last line to `now`).
        """
        seconds = self.seconds()
        after = sum(duration for k, duration in self._steps.items() if k > step)
        lost = min(seconds[PRODUCTIVE], after)
        seconds[PRODUCTIVE] -= lost
        seconds["repeated steps"] += lost
        return seconds, 0.0 if now is None or self._last is None else now - self._last

    def _restart(self, step: int, now: float | None) -> None:
        seconds, gap = self.resumed_at(step, now)
        seconds["restart"] += max(0.0, gap)
        self.clock_jumps += gap < 0
        self._steps = {k: duration for k, duration in self._steps.items() if k <= step}
        self._seconds, self._since_record, self._passed = seconds, 0.0, 0.0
        self._last = self._last if now is None else now

    def _pass(self, now: float | None) -> None:
        if now is None:
            return
        if self._last is not None:
            self.clock_jumps += now < self._last
            self._passed += max(0.0, now - self._last)
        self._last = now


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, float | int):
        return None
    return float(value) if abs(value) < 1e15 else None


def _record(value: object) -> dict[str, float] | None:
    """Returns a valid `goodput` record, or None."""
    if not isinstance(value, dict):
        return None
    seconds: dict[str, float] = {}
    for cause in CAUSES:
        number = _number(value.get(cause, 0.0))
        if number is None or number < 0:
            return None
        seconds[cause] = number
    return seconds
