"""A simulated step as a trace file for Perfetto (ui.perfetto.dev), in the Trace Event Format."""

import json
from pathlib import Path

from paxlike.files import write_file
from paxlike.planning.compile import Facts
from paxlike.planning.lanes import lanes
from paxlike.planning.simulated_step import Step


def write_trace(path: Path, title: str, facts: Facts, step: Step) -> None:
    """Writes one track for the device and one for each link.

    Times are in microseconds, rounded to whole nanoseconds as Perfetto does when it reads them:
    slices of a track then cannot overlap by a rounding error, for which it drops them.
    """
    events: list[dict] = [_name("process_name", 0, title)]
    for track, lane in enumerate(lanes(facts, step)):
        events.append(_name("thread_name", track, lane.name))
        for segment in lane.segments:
            begin, end = (round(1e9 * t) for t in (segment.begin, segment.end))
            events.append(
                {
                    "ph": "X",
                    "pid": 0,
                    "tid": track,
                    "ts": begin / 1000,
                    "dur": (end - begin) / 1000,
                    "name": segment.name,
                    "cat": segment.kind,
                    "args": {"instruction": segment.instruction, "operation": segment.operation},
                }
            )
    write_file(path, json.dumps({"otherData": {"written by": WRITER}, "traceEvents": events}))


WRITER = "paxlike plan"


def is_trace(path: Path) -> bool:
    """Whether `write_trace` wrote a file."""
    with path.open("rb") as file:
        return json.dumps({"otherData": {"written by": WRITER}})[:-1].encode() in file.read(200)


def _name(kind: str, track: int, name: str) -> dict:
    return {"ph": "M", "pid": 0, "tid": track, "name": kind, "args": {"name": name}}
