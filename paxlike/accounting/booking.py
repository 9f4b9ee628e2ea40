"""Where a run's wall time went, from its lines: also where an attempt was killed before it could say so.

Some lines carry `goodput`, cause -> seconds since the run began, all attempts together. Between such a line and the next word of a run
that was killed, the steps' own times are known and the rest is `other`. The time from the last word of an attempt to the first of the
next is a `restart`. Steps that were done after the checkpoint that the next attempt went on from are done again: the time of the first
doing moves to `repeated steps`.
"""

from collections.abc import Mapping

from paxlike.accounting.throughput import CAUSES, PRODUCTIVE


class Booking:
    """The bookings of a run up to the last line given to `add`."""

    def __init__(self):
        self.clock_jumps = 0
        """Lines that are older than the line before them: nothing is booked for such a jump."""
        self.empty = True
        self._booked = dict.fromkeys(CAUSES, 0.0)
        self._steps: dict[int, float] = {}
        """Step -> seconds of its last doing, those that are booked as productive."""
        self._since_record = 0.0
        """Seconds of steps after the last line with `goodput`."""
        self._passed = 0.0
        """Seconds seen to pass since then."""
        self._last: float | None = None

    def add(self, line: Mapping) -> None:
        """A line of metrics.jsonl (`train/metrics.py`), in the order of the file."""
        now = _number(line.get("time"))
        if line.get("event") == "start" and not self.empty:
            self._restart(int(line["step"]), now)
        else:
            self._pass(now)
        if "event" not in line and (seconds := _number(line.get("step_seconds"))) is not None:
            self._steps[int(line["step"])] = max(0.0, seconds)
            self._since_record += max(0.0, seconds)
        if record := _record(line.get("goodput")):
            self._booked, self._since_record, self._passed = record, 0.0, 0.0
        self.empty = False

    def seconds(self) -> dict[str, float]:
        """Cause -> seconds until the last line."""
        booked = dict(self._booked)
        # A step's line is written while the next step runs, so the first after a record began before it.
        steps = min(self._since_record, self._passed) if self._passed else self._since_record
        booked[PRODUCTIVE] += steps
        booked["other"] += max(0.0, self._passed - steps)
        return booked

    def resumed_at(self, step: int, now: float | None) -> tuple[dict[str, float], float]:
        """(cause -> seconds of the attempts so far, seconds from their last word to `now`), seen by one that goes on from `step`."""
        booked = self.seconds()
        lost = min(booked[PRODUCTIVE], sum(seconds for k, seconds in self._steps.items() if k > step))
        booked[PRODUCTIVE] -= lost
        booked["repeated steps"] += lost
        return booked, 0.0 if now is None or self._last is None else now - self._last

    def _restart(self, step: int, now: float | None) -> None:
        booked, gap = self.resumed_at(step, now)
        booked["restart"] += max(0.0, gap)
        self.clock_jumps += gap < 0
        self._steps = {k: seconds for k, seconds in self._steps.items() if k <= step}
        self._booked, self._since_record, self._passed = booked, 0.0, 0.0
        self._last = self._last if now is None else now

    def _pass(self, now: float | None) -> None:
        if now is None:
            return
        if self._last is not None:
            self.clock_jumps += now < self._last
            self._passed += max(0.0, now - self._last)
        self._last = now


def _number(value: object) -> float | None:
    return float(value) if type(value) in (float, int) and abs(value) < 1e15 else None


def _record(value: object) -> dict[str, float] | None:
    """`goodput` of a line, where it is whole."""
    if not isinstance(value, dict):
        return None
    numbers = {cause: _number(value.get(cause, 0.0)) for cause in CAUSES}
    return None if None in numbers.values() or min(numbers.values()) < 0 else numbers
