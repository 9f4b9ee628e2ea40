"""Simulates a step on one device: what computes when, and what each link sends when.

The device executes the schedule in order. A collective runs on its links, each of which sends one
collective at a time, in the order of their starts. At a done, the device waits until the collective
has ended: this is exposed communication. Hidden is the rest of a collective's time, while the
device computes or waits for another link.

    step = device time + exposed time

Simplifications: a collective runs at its full bandwidth beside any work, and work is not slowed
down by it.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Transfer(NamedTuple):
    """What the simulation needs of a collective."""

    seconds: float
    """One execution."""
    links: frozenset[str]


class Interval(NamedTuple):
    begin: float
    end: float
    of: int
    """Index of the work, or of the collective."""


@dataclasses.dataclass
class Timeline:
    """All intervals of a step, in seconds from its start."""

    compute: list[Interval] = dataclasses.field(default_factory=list)
    sent: list[Interval] = dataclasses.field(default_factory=list)
    """When each collective is on its links."""
    waits: list[Interval] = dataclasses.field(default_factory=list)
    """When the device waits, and the collective that is on the link then."""
    step: float = 0.0
    iterations: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    """Begin and end of each iteration of the outermost loops."""
    beside: dict[int, dict[int, float]] = dataclasses.field(default_factory=dict)
    """Collective -> work between its start and its done -> seconds."""

    @property
    def device(self) -> float:
        return sum(i.end - i.begin for i in self.compute)

    @property
    def links(self) -> float:
        return sum(i.end - i.begin for i in self.sent)

    @property
    def exposed(self) -> float:
        return sum(i.end - i.begin for i in self.waits)

    def by_collective(self) -> tuple[dict[int, float], dict[int, float]]:
        """Returns (seconds sent, seconds exposed) of each collective, over all executions."""
        totals = []
        for intervals in (self.sent, self.waits):
            seconds: dict[int, float] = collections.defaultdict(float)
            for begin, end, index in intervals:
                seconds[index] += end - begin
            totals.append(seconds)
        return totals[0], totals[1]


def simulate(
    items: Sequence, work_seconds: Sequence[float], transfers: Sequence[Transfer]
) -> Timeline:
    """Simulates the items of `accounting.hlo_schedule`.

    work_seconds, transfers: of the schedule's work and collectives.
    """
    simulation = _Simulation(work_seconds, transfers)
    simulation.run(items)
    for index in list(simulation.flying):
        simulation.wait([index])
    simulation.timeline.step = simulation.now
    return simulation.timeline


class _Simulation:
    def __init__(self, work_seconds: Sequence[float], transfers: Sequence[Transfer]):
        self.work_seconds, self.transfers = work_seconds, transfers
        self.timeline = Timeline()
        self.now = 0.0
        self.depth = 0
        self.flying: dict[int, collections.deque[Interval]] = {}
        """Collectives between their start and their done."""
        self.queues: dict[str, list[Interval]] = collections.defaultdict(list)
        """What each link still sends."""

    def run(self, items: Iterable) -> None:
        for item in items:
            match item[0]:
                case "work":
                    self.work(item[1])
                case "start":
                    self.start(item[1])
                case "done":
                    self.wait(item[1])
                case "wait":
                    self.start(item[1])
                    self.wait([item[1]])
                case "loop":
                    self.loop(item[1], item[2])

    def loop(self, times: int, items: Iterable) -> None:
        self.depth += 1
        for _ in range(times):
            begin = self.now
            self.run(items)
            if self.depth == 1:
                self.timeline.iterations.append((begin, self.now))
        self.depth -= 1

    def work(self, index: int) -> None:
        seconds = self.work_seconds[index]
        if not seconds:
            return
        self.timeline.compute.append(Interval(self.now, self.now + seconds, index))
        self.now += seconds
        for collective in self.flying:
            beside = self.timeline.beside.setdefault(collective, {})
            beside[index] = beside.get(index, 0.0) + seconds

    def start(self, index: int) -> None:
        seconds, links = self.transfers[index]
        begin = self.now
        for link in links:
            queue = self.queues[link] = [i for i in self.queues[link] if i.end > self.now]
            begin = max([begin, *(i.end for i in queue)])
        interval = Interval(begin, begin + seconds, index)
        for link in links:
            self.queues[link].append(interval)
        self.timeline.sent.append(interval)
        self.flying.setdefault(index, collections.deque()).append(interval)

    def wait(self, candidates: Sequence[int]) -> None:
        """Waits for the candidate that was started first, if any is on its way."""
        started = [index for index in candidates if index in self.flying]
        if not started:
            return
        index = min(started, key=lambda i: self.flying[i][0].begin)
        interval = self.flying[index].popleft()
        if not self.flying[index]:
            del self.flying[index]
        ahead = {i for link in self.transfers[index].links for i in self.queues[link]}
        for sent in sorted(ahead):
            # The link may first send others that were started before.
            if self.now < sent.end <= interval.end:
                self.timeline.waits.append(Interval(self.now, sent.end, sent.of))
                self.now = sent.end
