"""Wires by hand: the tori of TPU slices, NVLink and network cards, the data-center network."""

import types

import numpy as np
import pytest

from paxlike.accounting.hlo_collectives import Collective
from paxlike.planning.links import link, link_of, seconds
from paxlike.planning.topology import cluster

AXES = ("pod", "data", "model")
W = 4.5e10


def torus(*shape, slices=1):
    """Devices in an array [slices, *shape], each with its place."""
    made = np.empty((slices, *shape), object)
    for index in np.ndindex(made.shape):
        made[index] = types.SimpleNamespace(coords=index[1:], slice_index=index[0], process_index=0)
    return made


@pytest.mark.parametrize(
    ("axes", "what", "bandwidth"),
    [
        (["model"], "1 ring", 2 * W),
        (["data"], "2 rings", 4 * W),
        (["data", "model"], "3 rings", 6 * W),
    ],
)
def test_a_closed_dimension_is_a_ring_used_both_ways(axes, what, bandwidth):
    devices = torus(4, 4, 4).reshape(1, 16, 4)
    found = link(cluster("v4:4x4x4"), devices, axes, AXES)
    assert (found.what, found.bandwidth) == (what, pytest.approx(bandwidth))


def test_below_a_cube_and_in_part_of_a_dimension_it_is_a_line():
    small = torus(2, 2, 4).reshape(1, 4, 4)
    assert link(cluster("v4:2x2x4"), small, ["model"], AXES).what == "1 line"
    assert link(cluster("v4:2x2x4"), small, ["model"], AXES).bandwidth == pytest.approx(W)
    part = torus(4, 4, 8).reshape(1, 32, 4)  # `model` takes half of the last dimension
    assert link(cluster("v4:4x4x8"), part, ["model"], AXES).what == "1 line"


def test_2d_tori_close_at_16():
    whole = torus(16, 16).reshape(1, 256, 1)
    assert link(cluster("v6e:16x16"), whole, ["data"], AXES).what == "2 rings"
    assert (
        link(cluster("v6e:8x16"), torus(8, 16).reshape(1, 128, 1), ["data"], AXES).what
        == "1 ring and 1 line"
    )


def test_slices_meet_in_the_network():
    devices = torus(2, 2, 4, slices=2).reshape(2, 4, 4)
    found = link(cluster("v4:2x2x4", 2), devices, ["pod"], AXES)
    assert (found.what, found.bandwidth) == ("network", pytest.approx(2.5e10 / 4))


def test_gpus_of_a_host_share_nvlink_and_of_several_their_cards():
    made = np.empty((1, 16, 2), object)
    for i, index in enumerate(np.ndindex(made.shape)):
        made[index] = types.SimpleNamespace(process_index=i // 8)
    machine = cluster("h100:4x8")
    assert link(machine, made, ["model"], AXES).what == "NVLink"
    across = link(machine, made, ["data"], AXES)  # 16 GPUs, 4 in each of 4 hosts
    # 15/16 of an array pass each GPU, 3/4 of it enter a host through 4 cards of 50 GB/s.
    assert across.bandwidth == pytest.approx(50e9 * 4 * (15 / 16) / (3 / 4))


def collective(kind, shift=0, block=0):
    return Collective(
        kind, "model", 4, "bf16", 10**6, 10**6, 1, True, "c", "", shift=shift, block=block
    )


def test_a_shift_travels_one_way_and_through_the_devices_between():
    devices = torus(4, 4, 4).reshape(1, 16, 4)
    made = cluster("v4:4x4x4")
    whole = link(made, devices, ["model"], AXES)
    ahead, behind, far = (
        link_of(collective("collective-permute", shift), whole, made) for shift in (1, -1, 2)
    )
    assert whole.wires == {"z+", "z-"} and ahead.wires == {"z+"} and behind.wires == {"z-"}
    assert ahead.bandwidth == W and link_of(collective("all-gather"), whole, made) == whole
    one = seconds(collective("collective-permute", 1), ahead)
    assert seconds(collective("collective-permute", 2), far) == pytest.approx(2 * one)
    assert one == pytest.approx(10**6 / (W * 0.90) + 1e-6)


@pytest.mark.parametrize(
    ("shift", "block", "wires", "messages", "hops"),
    [
        (1, 4, {"y+"}, 1, 1),  # rings of the inner dimension
        (-1, 4, {"y-"}, 1, 1),
        (4, 16, {"x+"}, 1, 1),  # rings of the outer dimension
        (-4, 16, {"x-"}, 1, 1),
        (2, 4, {"y+"}, 2, 2),
        (1, 16, {"x+", "y+"}, 1, 2),  # the last of a row goes to the next row
    ],
)
def test_a_shift_within_a_part_of_an_axis_uses_the_wires_between_the_devices(
    shift, block, wires, messages, hops
):
    made = cluster("v4:4x4x4")
    whole = link(made, torus(4, 4, 4).reshape(1, 16, 4), ["data"], AXES)
    found = link_of(collective("collective-permute", shift, block), whole, made)
    assert found.wires == wires and found.bandwidth == W / messages
    assert found.latency == pytest.approx(hops * 1e-6)


def test_a_shift_around_a_line_comes_back_along_it():
    made = cluster("v4:2x2x3")
    whole = link(made, torus(2, 2, 3).reshape(1, 4, 3), ["model"], AXES)
    found = link_of(collective("collective-permute", 1, 3), whole, made)
    assert found.wires == {"z+", "z-"} and found.latency == pytest.approx(2e-6)


def test_latency_is_paid_per_hop_and_twice_by_an_all_reduce():
    devices = torus(4, 4, 4).reshape(1, 16, 4)
    whole = link(cluster("v4:4x4x4"), devices, ["data"], AXES)
    assert whole.latency == pytest.approx((2 + 2) * 1e-6)  # half of each ring
    nothing = Collective("all-reduce", "data", 16, "f32", 0, 0, 1, True, "c", "")
    assert seconds(nothing, whole) == pytest.approx(2 * whole.latency)


def all_to_all(found, devices):
    """Seconds without latency of an all-to-all of 1 MB from each device."""
    c = Collective("all-to-all", "data", devices, "bf16", 10**6, 10**6, 1, True, "c", "")
    return seconds(c, found) - found.latency


def test_an_all_to_all_in_a_torus_is_bounded_by_the_links_in_the_middle():
    """Of each half of the devices, half of the data crosses: on 4 of a ring, 2 x 0.5 MB over two
    links one way; on a line over one; in two dimensions, 8 x 0.5 MB over 4 rings' two links."""
    devices = torus(4, 4, 4).reshape(1, 16, 4)
    machine = cluster("v4:4x4x4")
    reach = W * 0.9
    ring = all_to_all(link(machine, devices, ["model"], AXES), 4)
    assert ring == pytest.approx(1e6 / (2 * reach))
    square = all_to_all(link(machine, devices, ["data"], AXES), 16)
    assert square == pytest.approx(8 * 0.5e6 / (8 * reach))
    small = torus(2, 2, 4).reshape(1, 4, 4)
    line = all_to_all(link(cluster("v4:2x2x4"), small, ["model"], AXES), 4)
    assert line == pytest.approx(1e6 / reach)


def test_an_all_to_all_of_gpus_crosses_their_own_cards():
    """3/4 of the data of each of 16 GPUs on 4 hosts leave the host, by a card of 50 GB/s."""
    made = np.empty((1, 16, 2), object)
    for i, index in enumerate(np.ndindex(made.shape)):
        made[index] = types.SimpleNamespace(process_index=i // 8)
    across = link(cluster("h100:4x8"), made, ["data"], AXES)
    assert all_to_all(across, 16) == pytest.approx(0.75e6 / (50e9 * 0.6))
    inside = link(cluster("h100:4x8"), made, ["model"], AXES)
    assert inside.across == 1
