"""How fast the links are along a mesh axis: which wires of the machine its devices are joined by, and how long a collective takes on them
at best.

- **TPU torus.** The devices of a group differ in some of the torus' dimensions. Each of them adds a ring, used both ways at once, or
  where it is not closed a line, which carries half as much. A dimension is closed where the slice is made of whole cubes of 4 x 4 x 4
  chips (3D), or is 16 long (2D). (How to Scale Your Model, chapters 2 and 3.)
- **GPUs.** Inside a host every GPU has its NVLink to the switch. Between hosts each has its own network card: what enters a host is
  shared by its GPUs' cards, and both steps run as a pipeline, so that the slower one counts.
- **pod.** TPU slices are joined by the data-center network, a share for each chip.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from paxlike.accounting.hlo_collectives import Collective
from paxlike.plan.topology import Cluster


@dataclasses.dataclass(frozen=True)
class Link:
    what: str
    """`3 rings`, `NVLink`, `NVLink and network`, `network`."""
    bandwidth: float
    """Bytes/s that one device sends at best in a collective over all devices of the group."""


def link(cluster: Cluster, devices: np.ndarray, axes: Sequence[str], names: Sequence[str]) -> Link:
    """The link of groups along some axes of the mesh. devices: the mesh's array of devices, its dimensions named by `names`."""
    chip = cluster.chip
    index = tuple(slice(None) if name in axes else 0 for name in names)
    group = devices[index].ravel()
    if len({getattr(device, "slice_index", 0) if cluster.pods > 1 else 0 for device in group}) > 1:
        return Link("network", chip.network_bandwidth)
    if cluster.platform == "gpu":
        hosts = len({device.process_index for device in group})
        if hosts == 1:
            return Link("NVLink", chip.link_bandwidth)
        mine = len(group) // hosts
        # A host's GPUs receive together what comes from the other hosts.
        crossing, all_others = (hosts - 1) / hosts, (len(group) - 1) / len(group)
        return Link(
            "NVLink and network", min(chip.link_bandwidth, chip.network_bandwidth * mine / crossing * all_others)
        )
    coordinates = np.array([device.coords for device in group])
    rings = lines = 0
    for dimension, size in enumerate(cluster.shape):
        extent = len(set(coordinates[:, dimension]))
        if extent > 1:
            closed = extent == size and _closed(cluster, size)
            rings, lines = rings + closed, lines + (not closed)
    parts = [f"{n} {word}{'s' * (n > 1)}" for n, word in ((rings, "ring"), (lines, "line")) if n]
    return Link(" and ".join(parts) or "inside the chip", chip.link_bandwidth * max(1, 2 * rings + lines))


def _closed(cluster: Cluster, size: int) -> bool:
    if cluster.chip.links == "3d torus":
        return all(n % 4 == 0 for n in cluster.shape)
    return size == 16


def seconds(collective: Collective, bandwidth: float) -> float:
    """Of one run, at best: bytes over bandwidth. An all-to-all crosses a quarter of a ring's length on average; a permutation goes
    one way over one link, which is less than what the group has together."""
    if collective.kind in ("all-to-all", "ragged-all-to-all"):
        return collective.sent_bytes / 4 / bandwidth
    return collective.sent_bytes / bandwidth
