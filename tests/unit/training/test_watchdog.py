"""The watchdog: when a step is overdue, and what is written then. The tests use a fake clock."""

import contextlib

import pytest

from paxlike.config import WatchdogConfig
from paxlike.training import watchdog
from paxlike.training.watchdog import FIRST_SECONDS, Watchdog


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def dog(tmp_path, clock, monkeypatch):
    """A watchdog with a disabled thread: the tests call `overdue` themselves."""
    monkeypatch.setattr(Watchdog, "_watch", lambda self: None)
    with Watchdog(WatchdogConfig(factor=10.0, at_least=5.0), tmp_path, clock) as entered:
        yield entered


def steps(dog, clock, *seconds):
    for number, passed in enumerate(seconds, 1):
        clock.now += passed
        dog.finished(number)


def test_the_timeout_is_derived_from_the_run(dog, clock):
    assert dog.timeout.seconds == FIRST_SECONDS
    steps(dog, clock, 60.0, 2.0, 2.0, 2.0, 2.0)
    assert dog.timeout.seconds == 20.0, (
        "ten times the median, which the slow first step does not change"
    )
    clock.now += 19.0
    assert dog.overdue() is None
    clock.now += 2.0
    assert dog.overdue() == 21.0


def test_the_timeout_has_a_minimum(dog, clock):
    steps(dog, clock, *[0.01] * 20)
    clock.now += 4.9
    assert dog.overdue() is None
    clock.now += 0.2
    assert dog.overdue() is not None


def test_the_timeout_of_the_first_steps_is_long(dog, clock):
    steps(dog, clock, 0.1, 0.1)
    clock.now += FIRST_SECONDS - 1
    assert dog.overdue() is None
    clock.now += 2
    assert dog.overdue() is not None


def test_paused_phases_are_not_watched(dog, clock):
    steps(dog, clock, *[1.0] * 10)
    with dog.paused("checkpoint"):
        clock.now += 10_000
        assert dog.overdue() is None
        with dog.paused("compile"):
            pass
    assert dog.overdue() is None
    clock.now += 11
    assert dog.overdue() == 11


def test_a_pause_does_not_count_as_step_time(dog, clock):
    steps(dog, clock, *[1.0] * 10)
    with dog.paused("evaluation"):
        clock.now += 500
    steps(dog, clock, 1.0)
    assert dog.timeout.median == 1.0


def test_it_writes_stack_traces_and_ends_the_process(tmp_path, clock, monkeypatch):
    """Runs the thread's function, with a fake end of the process."""
    ended = []

    def leave(self, word):
        self._evidence()
        ended.append(word)
        dog._closed.set()

    monkeypatch.setattr(watchdog.FailurePropagation, "exit", leave)
    dog = Watchdog(WatchdogConfig(factor=10.0, at_least=0.5), tmp_path, clock)
    dog._since = clock()
    steps(dog, clock, *[0.1] * 6)
    clock.now += 2.0
    dog._watch()
    assert (
        ended[0]["is"] == "hang"
        and "the step after step 6 has taken 2 s; the timeout is 1 s" in ended[0]["message"]
    )
    stacks = (tmp_path / "stacks" / "process-0.txt").read_text()
    assert "last step finished: 6, now in: step" in stacks and "test_watchdog.py" in stacks


def test_an_error_in_a_single_process_propagates_unchanged(dog):
    with pytest.raises(ZeroDivisionError), dog.paused("step"), contextlib.nullcontext():
        raise ZeroDivisionError
