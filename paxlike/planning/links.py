"""The bandwidth of the links along a mesh axis, and the shortest time of a collective on them.

- **TPU torus.** The devices of a group differ in some dimensions of the torus. Each dimension adds
  a ring, used in both directions at once. Without wraparound links it is a line with half the
  bandwidth. A dimension has wraparound links if the slice consists of whole cubes of 4 x 4 x 4
  chips (3D), or if its length is 16 (2D). (How to Scale Your Model, chapters 2 and 3.)
- **GPUs.** Within a host each GPU has its NVLink to the switch. Between hosts each GPU has its own
  network card: the cards of a host share its incoming data. Both stages run as a pipeline, so the
  slower one determines the time.
- **pod.** TPU slices are connected by the data-center network; each chip has a share of it.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from paxlike.accounting.hlo_collectives import Collective
from paxlike.planning.efficiency import efficiency
from paxlike.planning.topology import Cluster


@dataclasses.dataclass(frozen=True)
class Link:
    what: str
    """`3 rings`, `one way of 1 ring`, `NVLink`, `NVLink and network`, `network`."""
    bandwidth: float
    """Peak bytes/s that one device sends in a collective over all devices of the group."""
    reached: float = 1.0
    """The fraction of it that a large collective reaches."""
    latency: float = 0.0
    """Seconds until data has passed all devices of the group."""
    wires: frozenset[str] = frozenset()
    """The device's wires that it uses: `x+`, `x-`, `y+`, ... of a torus, `NVLink`, `network`.

    Collectives on different wires run at the same time.
    """
    places: tuple[tuple[int, ...], ...] = ()
    """In a torus: the coordinates of the group's devices."""
    across: float = 1.0
    """The time of an all-to-all, as a multiple of that of a gather in which a device sends as many
    bytes."""


def link(cluster: Cluster, devices: np.ndarray, axes: Sequence[str], names: Sequence[str]) -> Link:
    """The link between the devices of a group along some mesh axes.

    devices: the mesh's array of devices; `names` are the names of its dimensions.
    """
    chip, reached = cluster.accelerator, efficiency(cluster.accelerator)
    index = tuple(slice(None) if name in axes else 0 for name in names)
    group = devices[index].ravel()
    if len({getattr(device, "slice_index", 0) if cluster.pods > 1 else 0 for device in group}) > 1:
        latency = cluster.pods * reached.network_hop
        network = frozenset({"network"})
        return Link("network", chip.network_bandwidth, reached.network, latency, network)
    if cluster.platform == "gpu":
        hosts = len({device.process_index for device in group})
        if hosts == 1:
            latency = len(group) * reached.hop
            return Link("NVLink", chip.link_bandwidth, reached.link, latency, frozenset({"NVLink"}))
        mine = len(group) // hosts
        # The GPUs of a host share the data that arrives from other hosts.
        crossing, all_others = (hosts - 1) / hosts, (len(group) - 1) / len(group)
        network_bandwidth = chip.network_bandwidth * mine / crossing * all_others
        by_network, by_link = (
            network_bandwidth * reached.network,
            chip.link_bandwidth * reached.link,
        )
        crosses = by_network < by_link
        return Link(
            "NVLink and network",
            network_bandwidth if crosses else chip.link_bandwidth,
            reached.network if crosses else reached.link,
            hosts * reached.network_hop + mine * reached.hop,
            frozenset({"NVLink", "network"}),
            # In an all-to-all each card sends what its own GPU has for other hosts.
            across=mine * min(by_network, by_link) / by_network,
        )
    coordinates = np.array([device.coords for device in group])
    rings = lines = hops = 0
    longest = 0.0
    wires = set()
    for dimension, size in enumerate(cluster.shape):
        extent = len(set(coordinates[:, dimension]))
        if extent > 1:
            wires |= {f"{'xyz'[dimension]}{way}" for way in "+-"}
            closed = extent == size and _closed(cluster, size)
            rings, lines = rings + closed, lines + (not closed)
            hops += extent // 2 if closed else extent - 1
            # Half of the devices exchange half of their data with the others through the links in
            # the middle; the dimensions do so at the same time.
            longest = max(longest, extent / 4 / (1 + closed))
    parts = [f"{n} {word}{'s' * (n > 1)}" for n, word in ((rings, "ring"), (lines, "line")) if n]
    links = max(1, 2 * rings + lines)
    return Link(
        " and ".join(parts) or "inside the chip",
        chip.link_bandwidth * links,
        reached.link,
        hops * reached.hop,
        frozenset(wires or {"chip"}),
        places=tuple(tuple(int(n) for n in place) for place in coordinates),
        across=longest * links * len(group) / max(1, len(group) - 1),
    )


def _closed(cluster: Cluster, size: int) -> bool:
    if cluster.accelerator.links == "3d torus":
        return all(n % 4 == 0 for n in cluster.shape)
    return size == 16


def link_of(collective: Collective, link: Link, cluster: Cluster) -> Link:
    """The part of a group's link that a collective uses.

    A shift sends one message from each device, dimension by dimension, the short way around closed
    dimensions. The bandwidth is that of the wire with the most messages.
    """
    if not collective.shift or not link.places:
        return link
    chip, places = cluster.accelerator, link.places
    block = collective.block or len(places)
    loads: collections.Counter[tuple] = collections.Counter()
    hops = 0
    for position, place in enumerate(places):
        inside = position % block
        target = places[position - inside + (inside + collective.shift) % block]
        route = _route(cluster, place, target)
        loads.update(route)
        hops = max(hops, len(route))
    if not loads:
        return link
    wires = frozenset(wire for _, wire in loads)
    return Link(
        f"one way of {link.what}",
        chip.link_bandwidth / max(loads.values()),
        link.reached,
        hops * efficiency(chip).hop,
        wires,
    )


def _route(
    cluster: Cluster, source: tuple[int, ...], target: tuple[int, ...]
) -> list[tuple[tuple[int, ...], str]]:
    """(the device before it, wire) of each hop of a message."""
    route = []
    here = list(source)
    for dimension, size in enumerate(cluster.shape):
        steps = target[dimension] - here[dimension]
        if _closed(cluster, size):
            steps = (steps + (size - 1) // 2) % size - (size - 1) // 2
        for _ in range(abs(steps)):
            route.append((tuple(here), f"{'xyz'[dimension]}{'+' if steps > 0 else '-'}"))
            here[dimension] = (here[dimension] + (1 if steps > 0 else -1)) % size
    return route


def seconds(collective: Collective, link: Link) -> float:
    """The time of one execution on `link_of`: bytes / bandwidth + latency.

    An all-to-all takes `Link.across` times as long as a gather.
    """
    share = link.across if collective.kind in ("all-to-all", "ragged-all-to-all") else 1.0
    passes = 2 if collective.kind == "all-reduce" else 1
    return share * collective.sent_bytes / (link.bandwidth * link.reached) + passes * link.latency
