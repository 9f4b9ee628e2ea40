"""Where the wall time of a run went, worked out by hand for runs that were stopped, killed, and went back."""

import pytest
from made_runs import booked, start, step

from paxlike.accounting.booking import Booking
from paxlike.accounting.throughput import fraction_productive


def told(*lines: dict) -> Booking:
    booking = Booking()
    for line in lines:
        booking.add(line)
    return booking


def test_an_empty_run_and_one_that_has_only_begun():
    assert told().empty and sum(told().seconds().values()) == 0
    assert told({**start(), "time": 100.0}).seconds() == booked()


def test_a_record_counts_as_it_is():
    record = booked(step=50, compile=30, other=20)
    found = told({**start(), "time": 0.0}, {"event": "finish", "step": 9, "goodput": record, "time": 100.0})
    assert found.seconds() == record and fraction_productive(found.seconds()) == 0.5


KILLED = (
    {**start(), "goodput": booked(other=10), "time": 1000.0},
    {"event": "compile", "step": 0, "seconds": 30, "goodput": booked(other=10, compile=30), "time": 1030.0},
    *({**step(k, seconds=2.0), "time": 1030.0 + 2 * k} for k in range(1, 11)),  # until 1050
    {"event": "checkpoint", "step": 10, "goodput": booked(other=10, compile=30, step=20, checkpoint=5), "time": 1055.0},
    *({**step(k, seconds=2.0), "time": 1055.5 + 2 * (k - 10)} for k in range(11, 18)),  # 17 is written at 1069.5
)


def test_a_killed_attempt_is_worked_out_from_its_lines():
    """14 s of steps after the checkpoint's line; the half second beside them is nobody's."""
    assert told(*KILLED).seconds() == booked(other=10.5, compile=30, step=34, checkpoint=5)


def test_steps_that_are_done_again_and_the_gap_are_no_productive_time():
    """Back to step 10: the 7 steps after it, 14 s, are lost; 1100 - 1069.5 s passed in between."""
    resumed = told(*KILLED, {**start(10), "time": 1100.0})
    assert resumed.seconds() == booked(other=10.5, compile=30, step=20, repeated_steps=14, checkpoint=5, restart=30.5)
    lost, gap = told(*KILLED).resumed_at(10, 1100.0)
    assert gap == 30.5 and lost == {**resumed.seconds(), "restart": 0.0}


def test_a_second_kill_loses_only_what_was_done_since_the_first():
    """Steps 11 to 13 were done again and are lost again: 6 s more, not 14 s more."""
    again = told(
        *KILLED, {**start(10), "time": 1100.0},
        *({**step(k, seconds=2.0), "time": 1100.0 + 2 * (k - 10)} for k in range(11, 14)),
        {**start(10), "time": 1110.0},
    )  # fmt: skip
    assert again.seconds() == booked(other=10.5, compile=30, step=20, repeated_steps=20, checkpoint=5, restart=30.5 + 4)


def test_going_on_from_the_last_step_loses_none():
    stopped = {"event": "stop", "step": 17, "signal": "SIGTERM", "goodput": booked(step=34, compile=30), "time": 1070.0}
    found = told(*KILLED, stopped, {**start(17), "time": 1080.0})
    assert found.seconds() == booked(step=34, compile=30, restart=10)


def test_a_clock_that_goes_backwards_is_counted_and_never_booked():
    back = told(*KILLED, {**step(18, seconds=2.0), "time": 500.0}, {**step(19, seconds=2.0), "time": 502.0})
    assert back.clock_jumps == 1
    # 14.5 s passed before the jump and 2 s after it, with 18 s of steps: no second is booked twice, none is below 0.
    assert back.seconds() == booked(other=10, compile=30, step=20 + 16.5, checkpoint=5)
    restarted = told(*KILLED, {**start(17), "time": 400.0})
    assert restarted.clock_jumps == 1 and restarted.seconds()["restart"] == 0
    assert min(restarted.seconds().values()) >= 0


@pytest.mark.parametrize("record", [3, {"step": "much"}, {"step": -5.0}, {"step": float("nan")}, None])
def test_a_record_that_makes_no_sense_is_left_out(record):
    assert told(*KILLED, {**step(18), "goodput": record, "time": 1071.5}).seconds()["step"] == 36
