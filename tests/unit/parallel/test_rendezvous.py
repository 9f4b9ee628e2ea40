"""Who has come to a job, and who has not: real sockets on this machine."""

import socket
import threading
import time
import types

import pytest

from paxlike.config import ConfigError, Hosts, JobError, UserError
from paxlike.parallel import rendezvous
from paxlike.parallel.rendezvous import gather


@pytest.fixture
def address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def over(monkeypatch):
    """over(condition): the time is over as soon as it holds for the numbers that process 0 has read
    (None: a stranger's).

    No time passes before, so that nobody comes too late on a slow machine.
    """

    def start(condition) -> None:
        read, seen = rendezvous._read, []

        def counted(connection, hosts):
            k, name = read(connection, hosts)
            seen.append(k)
            return k, name

        monkeypatch.setattr(rendezvous, "_read", counted)
        clock = types.SimpleNamespace(monotonic=lambda: 1e6 * condition(seen), sleep=time.sleep)
        monkeypatch.setattr(rendezvous, "time", clock)

    return start


def run(
    address: str, ids: list[int], count: int, seconds: float = 60
) -> dict[int, Exception | None]:
    """What each of the processes, threads here, gets; those with the same number share an entry."""
    results: dict[int, Exception | None] = {}

    def one(place: int, k: int) -> None:
        try:
            gather(Hosts(address, count, k), seconds)
            results[place] = None
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=one, args=(place, k)) for place, k in enumerate(ids)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_all_come_in_any_order(address):
    assert run(address, [3, 1, 0, 2], 4) == dict.fromkeys(range(4))


def test_those_that_do_not_come_are_named(address, over):
    over(lambda seen: 2 in seen)
    results = run(address, [0, 2], 4)
    assert isinstance(results[0], JobError)
    assert f"processes [1, 3] of 4 have not connected to {address} within 60 s" in str(results[0])
    assert f"2 on {socket.gethostname()}" in str(results[0])
    assert isinstance(results[1], JobError)


def test_the_first_one_missing(address):
    (error,) = run(address, [1], 2, 0.5).values()
    assert isinstance(error, JobError) and f"could not join process 0 at {address}" in str(error)


def test_a_number_given_twice(address, over):
    over(lambda seen: seen.count(1) > 1)
    results = run(address, [0, 1, 1], 3)
    assert isinstance(results[0], UserError) and "two processes have hosts.id 1" in str(results[0])


def test_strangers_are_not_counted(address, over):
    """Other programs that call at the port, and processes of a job of another size."""
    host, port = address.split(":")

    def strange(words: bytes) -> None:
        while True:
            try:
                with socket.create_connection((host, int(port)), timeout=5) as connection:
                    connection.sendall(words)
                    connection.recv(1)
                    return
            except ConnectionRefusedError:
                continue
            except OSError:
                return

    lines = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"paxlike process 1 3 other\n",
        b"paxlike process -1 2 other\n",
        b"\xff" * 500,
    ]
    over(lambda seen: len(seen) == len(lines))
    strangers = [threading.Thread(target=strange, args=(line,)) for line in lines]
    for thread in strangers:
        thread.start()
    error = run(address, [0], 2)[0]
    for thread in strangers:
        thread.join()
    assert "processes [1] of 2 have not connected" in str(
        error
    ) and "besides process 0: none" in str(error)


def test_alone_nobody_is_waited_for():
    gather(Hosts("10.255.255.1:9", 1, 0), 0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("", 2, 0), "hosts.coordinator is not set"),
        (("here", 2, 0), "must be HOST:PORT"),
        (("here:port", 2, 0), "must be HOST:PORT"),
        (("here:99999", 2, 0), "must be HOST:PORT"),
        (("here:1", 0, 0), "give the number of processes"),
        (("here:1", 2, 2), r"hosts.id is 2; with hosts.count 2 it must be in 0 ... 1"),
    ],
)
def test_hosts_that_cannot_be(given, message):
    with pytest.raises(ConfigError, match=message):
        Hosts(*given)
