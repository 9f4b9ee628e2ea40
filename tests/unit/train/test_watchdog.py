"""When a step is overdue, and what is written then; no time passes in these tests."""

import contextlib

import pytest

from paxlike.config import WatchdogConfig
from paxlike.train import watchdog
from paxlike.train.watchdog import FIRST_SECONDS, Watchdog


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def dog(tmp_path, clock, monkeypatch):
    """A watchdog whose own thread does not look; the tests do."""
    monkeypatch.setattr(Watchdog, "_watch", lambda self: None)
    with Watchdog(WatchdogConfig(factor=10.0, at_least=5.0), tmp_path, clock) as entered:
        yield entered


def steps(dog, clock, *seconds):
    for number, passed in enumerate(seconds, 1):
        clock.now += passed
        dog.finished(number)


def test_the_limit_is_learned_from_the_run(dog, clock):
    assert dog.limit.seconds == FIRST_SECONDS
    steps(dog, clock, 60.0, 2.0, 2.0, 2.0, 2.0)
    assert dog.limit.seconds == 20.0, "ten times the median: the first step, with its warm-up, is not the measure"
    clock.now += 19.0
    assert dog.overdue() is None
    clock.now += 2.0
    assert dog.overdue() == 21.0


def test_no_less_than_the_least(dog, clock):
    steps(dog, clock, *[0.01] * 20)
    clock.now += 4.9
    assert dog.overdue() is None
    clock.now += 0.2
    assert dog.overdue() is not None


def test_before_it_knows_the_run_it_waits_long(dog, clock):
    steps(dog, clock, 0.1, 0.1)
    clock.now += FIRST_SECONDS - 1
    assert dog.overdue() is None
    clock.now += 2
    assert dog.overdue() is not None


def test_what_takes_its_own_time_is_not_watched(dog, clock):
    steps(dog, clock, *[1.0] * 10)
    with dog.paused("checkpoint"):
        clock.now += 10_000
        assert dog.overdue() is None
        with dog.paused("compile"):
            pass
    assert dog.overdue() is None
    clock.now += 11
    assert dog.overdue() == 11


def test_a_pause_is_no_step(dog, clock):
    steps(dog, clock, *[1.0] * 10)
    with dog.paused("evaluation"):
        clock.now += 500
    steps(dog, clock, 1.0)
    assert dog.limit.usual == 1.0


def test_it_ends_the_process_and_says_where_it_stood(tmp_path, clock, monkeypatch):
    """The thread itself, with an end of the process that can be watched."""
    ended = []

    def leave(self, word):
        self._evidence()
        ended.append(word)
        dog._closed.set()

    monkeypatch.setattr(watchdog.Departure, "leave", leave)
    dog = Watchdog(WatchdogConfig(factor=10.0, at_least=0.5), tmp_path, clock)
    dog._since = clock()
    steps(dog, clock, *[0.1] * 6)
    clock.now += 2.0
    dog._watch()
    assert ended[0]["is"] == "hang" and "the step after step 6 has taken 2 s; the limit is 1 s" in ended[0]["message"]
    stacks = (tmp_path / "stacks" / "process-0.txt").read_text()
    assert "last step finished: 6, now in: step" in stacks and "test_watchdog.py" in stacks


def test_an_error_of_a_process_alone_is_its_own(dog):
    with pytest.raises(ZeroDivisionError), dog.paused("step"), contextlib.nullcontext():
        raise ZeroDivisionError
