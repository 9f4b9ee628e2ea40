"""A simulated step as lanes over time: one for the device, one for the links of each mesh axis.

A permutation uses one direction of a link, which has a lane of its own: within a lane, one
collective is sent at a time.
"""

import dataclasses
from typing import NamedTuple

from paxlike.planning.compile import Facts
from paxlike.planning.simulated_step import Step


class Segment(NamedTuple):
    begin: float
    end: float
    """In seconds from the start of the step."""
    kind: str
    """`matrix`, `memory`, `kernel`, `wait` or `send`."""
    name: str
    instruction: str
    operation: str
    """JAX's name of it."""


@dataclasses.dataclass(frozen=True)
class Lane:
    name: str
    segments: list[Segment]


def lanes(facts: Facts, step: Step) -> list[Lane]:
    """Returns the device's lane and, for each mesh axis, one of its links or of each direction."""
    work, collectives = facts.all_work(), facts.all_collectives()
    device = []
    for begin, end, i in step.timeline.compute:
        w = work[i]
        kind = "kernel" if w.kernel else "matrix" if w.flops else "memory"
        device.append(Segment(begin, end, kind, short_name(w.op_name, w.name), w.name, w.op_name))
    for begin, end, i in step.timeline.waits:
        c = collectives[i]
        device.append(
            Segment(begin, end, "wait", f"waits: {c.kind} over {c.axis}", c.name, c.op_name)
        )
    axes: dict[str, list[Segment]] = {}
    for begin, end, i in step.timeline.sent:
        c = collectives[i]
        name = f"{c.kind} of {c.payload / 2**20:,.1f} MiB"
        sent = Segment(begin, end, "send", name, c.name, c.op_name)
        axes.setdefault(f"{c.axis} ({step.lanes[i]})", []).append(sent)
    return [Lane("device", sorted(device)), *(Lane(axis, axes[axis]) for axis in sorted(axes))]


def short_name(op_name: str, name: str) -> str:
    """The last two parts of a JAX operation, without transforms; else the instruction's name."""
    parts = [part for part in op_name.split("/") if part not in TRANSFORMS]
    return "/".join(parts[-2:]) or name


TRANSFORMS = ("while", "body", "closed_call", "checkpoint", "shard_map")
