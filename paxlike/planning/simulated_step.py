"""The simulated step of a compiled program on a cluster: roofline, links and timeline together."""

import dataclasses

import numpy as np

from paxlike.config import Config
from paxlike.planning import links, roofline
from paxlike.planning.compile import Facts
from paxlike.planning.timeline import Timeline, Transfer, simulate
from paxlike.planning.topology import Cluster


@dataclasses.dataclass(frozen=True)
class Step:
    """The simulated step of one device. All seconds are 0 on a machine without a table row."""

    timeline: Timeline
    wires: list[str]
    """Of each collective: the links it uses."""
    lanes: list[str]
    """Of each collective: the same, with the direction of a permutation: a collective waits for the
    others of its lane."""
    matrix: float
    memory: float


def simulated(config: Config, cluster: Cluster, facts: Facts, devices: np.ndarray) -> Step:
    """Simulates the compiled step. devices: the mesh's array of devices."""
    found = facts.all_collectives()
    if cluster.chip is None:
        here = ["this machine"] * len(found)
        return Step(Timeline(), here, here, 0.0, 0.0)
    dtype = "bfloat16" if config.precision.compute == "auto" else config.precision.compute
    work, matrix, memory = roofline.work_seconds(facts.all_work(), cluster.chip, dtype)
    made: dict[str, links.Link] = {}
    used, used_lanes, transfers = [], [], []
    for collective in found:
        axis = collective.axis
        if axis not in made:
            names = [n for n in facts.mesh if n in axis.removeprefix("part of ").split("+")]
            made[axis] = links.link(cluster, devices, names or list(facts.mesh), list(facts.mesh))
        link = links.link_of(collective, made[axis], cluster)
        used.append(link.what)
        way = f", {' '.join(sorted(link.wires))}" if collective.shift else ""
        used_lanes.append(f"{link.what}{way}")
        transfers.append(Transfer(links.seconds(collective, link), link.wires))
    return Step(simulate(facts.items, work, transfers), used, used_lanes, matrix, memory)
