"""What processes of a job tell each other, against a coordination service in memory; and whose
fault the end of a job is.
"""

import json
import re

import jax
import pytest

from paxlike.config import JobError, UserError
from paxlike.parallel import failure, job


class Service:
    """Key-value store and barriers; `others` leave their words when process 0 comes to a
    barrier.
    """

    def __init__(self, others: dict[int, object]):
        self.words: dict[str, str] = {}
        self.others = others

    def key_value_set(self, key: str, value: str) -> None:
        assert key not in self.words, "the service refuses to set a key twice"
        self.words[key] = value

    def wait_at_barrier(self, key: str, milliseconds: int) -> None:
        self.words |= {f"{key}/{k}": json.dumps(value) for k, value in self.others.items()}
        if len([name for name in self.words if name.startswith(f"{key}/")]) < jax.process_count():
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out. Id: x")

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        return [(key, value) for key, value in self.words.items() if key.startswith(folder)]


@pytest.fixture
def three(monkeypatch):
    """three(others' values) makes this process the first of three."""

    def start(others: dict[int, object]) -> Service:
        service = Service(others)
        monkeypatch.setattr(jax, "process_count", lambda: 3)
        monkeypatch.setattr(jax, "process_index", lambda: 0)
        monkeypatch.setattr(job.runtime, "client", lambda: service)
        monkeypatch.setattr(job, "_exchanges", {})
        monkeypatch.setattr(job, "_names", ["a", "b", "c"])
        monkeypatch.setattr(job, "wait_for_readers", lambda: None)
        return service

    return start


def test_alone_everything_is_its_own():
    assert job.exchange("x", {"a": 1}, 1) == [{"a": 1}]
    assert job.each("x", lambda: "mine", 1) == "mine" and job.first("x", lambda: 2, 1) == 2
    with pytest.raises(UserError, match="^mine$"):
        job.each("x", lambda: (_ for _ in ()).throw(UserError("mine")), 1)


def test_exchange_gives_all_values_in_order_and_can_be_repeated(three):
    three({2: "two", 1: "one"})
    assert job.exchange("x", "zero", 1) == ["zero", "one", "two"]
    assert job.exchange("x", "again", 1) == ["again", "one", "two"]


def test_those_that_do_not_come_are_named(three):
    three({2: "two"})
    with pytest.raises(
        JobError,
        match=r"x: process 1 on b did not respond within 7 s "
        r"\(DEADLINE_EXCEEDED: Barrier timed out\)",
    ):
        job.exchange("x", "zero", 7)


def test_an_error_anywhere_is_raised_everywhere_with_its_place(three):
    three({1: None, 2: "no such file"})
    with pytest.raises(UserError, match="process 2 on c: no such file"):
        job.each("x", lambda: 1, 1)


WORDS = {
    "user error": (
        {0: ("crash", 1, "gloo"), 1: ("error", 2, "bad flag"), 2: ("crash", 1, "gloo")},
        2,
        "process 1 on b: bad flag",
    ),
    "killed": (
        {0: ("crash", 1, "gloo"), 2: ("crash", 1, "gloo")},
        3,
        "process 1 on b no longer answers: killed",
    ),
    "two killed": (
        {0: ("crash", 1, "gloo")},
        3,
        "process 1 on b and process 2 on c no longer answer: killed",
    ),
    "hung": (
        {0: ("hang", 3, "step 7 is late"), 2: ("heard", 3, "")},
        3,
        "process 1 on b no longer answers.*step 7 is late",
    ),
    "slow but there": (
        {0: ("heard", 3, ""), 1: ("hang", 3, "late"), 2: ("heard", 3, "")},
        3,
        "process 1 on b: late",
    ),
    "own bug": (
        {0: ("crash", 1, "KeyError: x"), 1: ("heard", 3, ""), 2: ("heard", 3, "")},
        1,
        "KeyError: x\ntrace",
    ),
    "bug of another": (
        {0: ("heard", 3, ""), 1: ("heard", 3, ""), 2: ("crash", 1, "KeyError: x")},
        3,
        "process 2 on c: KeyError: x",
    ),
}


@pytest.mark.parametrize(("words", "code", "says"), WORDS.values(), ids=WORDS.keys())
def test_whose_fault_it_is(three, words, code, says):
    three({})
    words = {
        k: {"is": kind, "code": c, "message": message} for k, (kind, c, message) in words.items()
    }
    found, message = failure._verdict(words, words[0], "trace")
    assert found == code
    assert re.match(says, message, re.DOTALL), message
