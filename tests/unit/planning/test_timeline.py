"""Schedules whose timelines are computed by hand."""

import pytest

from paxlike.planning.timeline import Transfer, simulate

X, Y = frozenset("x"), frozenset("y")


def totals(items, work, transfers):
    timeline = simulate(items, work, transfers)
    assert timeline.step == pytest.approx(timeline.device + timeline.exposed)
    return timeline.step, timeline.links, timeline.exposed


def test_the_device_waits_for_a_synchronous_collective():
    items = [("work", 0), ("wait", 0), ("work", 0)]
    assert totals(items, [1.0], [Transfer(2.0, X)]) == (4.0, 2.0, 2.0)


def test_work_between_start_and_done_hides_a_collective():
    items = [("start", 0), ("work", 0), ("done", [0]), ("work", 0)]
    assert totals(items, [1.0], [Transfer(0.5, X)]) == (2.0, 0.5, 0.0)
    assert totals(items, [1.0], [Transfer(1.5, X)]) == (2.5, 1.5, 0.5)


def test_one_link_sends_one_collective_at_a_time():
    items = [("start", 0), ("start", 1), ("work", 0), ("done", [0]), ("done", [1])]
    same = [Transfer(1.0, X), Transfer(1.0, X | Y)]
    assert totals(items, [1.0], same) == (2.0, 2.0, 1.0)
    other = [Transfer(1.0, X), Transfer(1.0, Y)]
    assert totals(items, [1.0], other) == (1.0, 2.0, 0.0)


def test_a_wait_is_attributed_to_what_the_link_sends():
    items = [("start", 0), ("start", 1), ("done", [1]), ("done", [0])]
    timeline = simulate(items, [], [Transfer(3.0, X), Transfer(1.0, X)])
    sent, exposed = timeline.by_collective()
    assert sent == exposed == {0: 3.0, 1: 1.0}


def test_a_loop_hides_the_collective_of_its_previous_iteration():
    body = [("done", [0, 1]), ("start", 1), ("work", 0)]
    items = [("start", 0), ("loop", 3, body), ("done", [0, 1])]
    transfers = [Transfer(1.0, X), Transfer(1.0, X)]
    # Only the first one, started before the loop, has no work beside it.
    assert totals(items, [1.0], transfers) == (4.0, 4.0, 1.0)


def test_what_runs_beside_a_collective():
    items = [("loop", 2, [("start", 0), ("work", 0), ("work", 1), ("done", [0]), ("work", 0)])]
    assert simulate(items, [1.0, 0.5], [Transfer(1.0, X)]).beside == {0: {0: 2.0, 1: 1.0}}


def test_the_step_ends_when_every_collective_has_ended():
    assert totals([("start", 0), ("work", 0)], [1.0], [Transfer(2.0, X)]) == (2.0, 2.0, 1.0)
