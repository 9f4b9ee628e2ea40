"""Goodput from metrics lines, against values computed by hand, for interrupted runs."""

import pytest
from sample_runs import recorded, start, step

from paxlike.accounting.goodput import RecordedGoodput
from paxlike.accounting.throughput import fraction_productive


def goodput_of(*lines: dict) -> RecordedGoodput:
    goodput = RecordedGoodput()
    for line in lines:
        goodput.add(line)
    return goodput


def test_empty_run_and_run_without_steps():
    assert goodput_of().empty and sum(goodput_of().seconds().values()) == 0
    assert goodput_of({**start(), "time": 100.0}).seconds() == recorded()


def test_record_is_used_unchanged():
    record = recorded(step=50, compile=30, other=20)
    found = goodput_of(
        {**start(), "time": 0.0}, {"event": "finish", "step": 9, "goodput": record, "time": 100.0}
    )
    assert found.seconds() == record and fraction_productive(found.seconds()) == 0.5


KILLED = (
    {**start(), "goodput": recorded(other=10), "time": 1000.0},
    {
        "event": "compile",
        "step": 0,
        "seconds": 30,
        "goodput": recorded(other=10, compile=30),
        "time": 1030.0,
    },
    *({**step(k, seconds=2.0), "time": 1030.0 + 2 * k} for k in range(1, 11)),  # until 1050
    {
        "event": "checkpoint",
        "step": 10,
        "goodput": recorded(other=10, compile=30, step=20, checkpoint=5),
        "time": 1055.0,
    },
    # Step 17 is written at 1069.5.
    *({**step(k, seconds=2.0), "time": 1055.5 + 2 * (k - 10)} for k in range(11, 18)),
)


def test_goodput_of_killed_attempt():
    """14 s of steps follow the checkpoint's line. The remaining half second is `other`."""
    assert goodput_of(*KILLED).seconds() == recorded(other=10.5, compile=30, step=34, checkpoint=5)


def test_repeated_steps_and_restart_are_not_productive():
    """Resuming from step 10 loses the 7 steps after it, 14 s. The restart takes 1100 - 1069.5 s."""
    resumed = goodput_of(*KILLED, {**start(10), "time": 1100.0})
    assert resumed.seconds() == recorded(
        other=10.5, compile=30, step=20, repeated_steps=14, checkpoint=5, restart=30.5
    )
    lost, gap = goodput_of(*KILLED).resumed_at(10, 1100.0)
    assert gap == 30.5 and lost == {**resumed.seconds(), "restart": 0.0}


def test_second_kill_loses_only_steps_since_the_first():
    """Steps 11 to 13 ran again and are lost again: 6 s more, not 14 s more."""
    again = goodput_of(
        *KILLED, {**start(10), "time": 1100.0},
        *({**step(k, seconds=2.0), "time": 1100.0 + 2 * (k - 10)} for k in range(11, 14)),
        {**start(10), "time": 1110.0},
    )  # fmt: skip
    assert again.seconds() == recorded(
        other=10.5, compile=30, step=20, repeated_steps=20, checkpoint=5, restart=30.5 + 4
    )


def test_resuming_from_the_last_step_loses_none():
    stopped = {
        "event": "stop",
        "step": 17,
        "signal": "SIGTERM",
        "goodput": recorded(step=34, compile=30),
        "time": 1070.0,
    }
    found = goodput_of(*KILLED, stopped, {**start(17), "time": 1080.0})
    assert found.seconds() == recorded(step=34, compile=30, restart=10)


def test_clock_jump_is_counted_but_adds_no_time():
    back = goodput_of(
        *KILLED, {**step(18, seconds=2.0), "time": 500.0}, {**step(19, seconds=2.0), "time": 502.0}
    )
    assert back.clock_jumps == 1
    # 14.5 s passed before the jump and 2 s after it, with 18 s of steps. Time is not counted twice,
    # and never negative.
    assert back.seconds() == recorded(other=10, compile=30, step=20 + 16.5, checkpoint=5)
    restarted = goodput_of(*KILLED, {**start(17), "time": 400.0})
    assert restarted.clock_jumps == 1 and restarted.seconds()["restart"] == 0
    assert min(restarted.seconds().values()) >= 0


@pytest.mark.parametrize(
    "record", [3, {"step": "much"}, {"step": -5.0}, {"step": float("nan")}, None]
)
def test_invalid_record_is_ignored(record):
    assert (
        goodput_of(*KILLED, {**step(18), "goodput": record, "time": 1071.5}).seconds()["step"] == 36
    )
