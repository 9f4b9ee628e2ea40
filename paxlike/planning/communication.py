"""Tables of a plan about communication: by kind, by mesh axis, and what is exposed."""

from paxlike.accounting.hlo_collectives import Collective
from paxlike.planning.compile import Facts
from paxlike.planning.simulated_step import Step


def rows(found: list[Collective], step: Step) -> list[dict]:
    """Groups equal collectives; the longest first."""
    sent, exposed = step.timeline.by_collective()
    alike: dict[tuple, dict] = {}
    for i, c in enumerate(found):
        key = (c.kind, c.axis, c.in_loop, c.dtype, c.payload, c.alone)
        row = alike.setdefault(
            key,
            {
                "kind": c.kind,
                "axis": c.axis,
                "in_layer_loop": c.in_loop,
                "dtype": c.dtype,
                "bytes": c.payload,
                "times": 0,
                "sent_bytes": 0,
                "wires": step.wires[i],
                "seconds": 0.0,
                "exposed": 0.0,
                "waits": c.alone,
            },
        )
        row["times"] += c.times
        row["sent_bytes"] += c.times * c.sent_bytes
        row["seconds"] += sent.get(i, 0.0)
        row["exposed"] += exposed.get(i, 0.0)
    return sorted(alike.values(), key=lambda row: (-row["seconds"], -row["sent_bytes"]))


def by_axis(found: list[Collective], step: Step) -> list[dict]:
    """Seconds sent, hidden and exposed by mesh axis and kind; the most exposed first."""
    sent, exposed = step.timeline.by_collective()
    sums: dict[tuple[str, str], list[float]] = {}
    for i, c in enumerate(found):
        row = sums.setdefault((c.axis, c.kind), [0.0, 0.0])
        row[0] += sent.get(i, 0.0)
        row[1] += exposed.get(i, 0.0)
    listed = [
        {"axis": axis, "kind": kind, "sent": s, "hidden": s - e, "exposed": e}
        for (axis, kind), (s, e) in sums.items()
    ]
    return sorted(listed, key=lambda row: (-row["exposed"], -row["sent"]))


MOST_EXPOSED = 3


def most_exposed(facts: Facts, step: Step) -> list[dict]:
    """The collectives with the most exposed time, and the work that runs beside each."""
    found, work = facts.all_collectives(), facts.all_work()
    sent, exposed = step.timeline.by_collective()
    listed = []
    for i in sorted(exposed, key=lambda i: -exposed[i])[:MOST_EXPOSED]:
        beside = step.timeline.beside.get(i, {})
        longest = sorted(beside, key=lambda k: -beside[k])[:MOST_EXPOSED]
        listed.append(
            {
                "name": found[i].name,
                "op_name": found[i].op_name,
                "kind": found[i].kind,
                "axis": found[i].axis,
                "times": found[i].times,
                "bytes": found[i].payload,
                "sent": sent[i],
                "exposed": exposed[i],
                "beside": [
                    {"name": work[k].name, "op_name": work[k].op_name, "seconds": beside[k]}
                    for k in longest
                ],
            }
        )
    return listed
