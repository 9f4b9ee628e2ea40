"""Waits until all processes of a job have connected, and reports the missing ones.

JAX waits too, but on a timeout it ends the process without naming anyone. So process 0 first
receives one line from every other process, at the address where JAX's coordinator listens later.
"""

import socket
import time

from paxlike.config import Hosts, JobError, UserError

GREETING = "paxlike process"
GO = b"go\n"
_LONGEST_LINE = 200


def gather(hosts: Hosts, seconds: float) -> None:
    """Returns when all `hosts.count` processes have called it.

    Raises JobError naming the processes that have not connected after `seconds`, and UserError if
    two processes have the same id or the address does not belong to process 0.
    """
    if hosts.count == 1:
        return
    deadline = time.monotonic() + seconds
    host, _, port = hosts.coordinator.rpartition(":")
    address = (host.strip("[]"), int(port))
    if hosts.id == 0:
        _receive(hosts, address, deadline, seconds)
    else:
        _call(hosts, address, deadline, seconds)


def _receive(hosts: Hosts, address: tuple[str, int], deadline: float, seconds: float) -> None:
    connected: dict[int, tuple[socket.socket, str]] = {}
    try:
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server(address, family=family, backlog=hosts.count) as server:
            while len(connected) < hosts.count - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                connection, _ = server.accept()
                k, name = _read(connection, hosts)
                if k is None:
                    connection.close()
                elif k in connected:
                    raise UserError(
                        f"two processes have hosts.id {k}: on {connected[k][1]} and on {name}."
                    )
                else:
                    connected[k] = (connection, name)
            for connection, _ in connected.values():
                connection.sendall(GO)
    except TimeoutError:
        absent = [k for k in range(1, hosts.count) if k not in connected]
        there = ", ".join(f"{k} on {name}" for k, (_, name) in sorted(connected.items())) or "none"
        raise JobError(
            f"processes {absent} of {hosts.count} have not connected to {hosts.coordinator} within "
            f"{seconds:.0f} s; connected, besides process 0: {there}."
        ) from None
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at hosts.coordinator {hosts.coordinator}: {error}."
        ) from error
    finally:
        for connection, _ in connected.values():
            connection.close()


def _read(connection: socket.socket, hosts: Hosts) -> tuple[int | None, str]:
    """(process id, host) of the caller; (None, "") if it is not a process of this job."""
    connection.settimeout(5)
    try:
        with connection.makefile() as lines:
            words = lines.readline(_LONGEST_LINE).split()
    except (OSError, ValueError):
        return None, ""
    if len(words) != 5 or " ".join(words[:2]) != GREETING or not (words[2] + words[3]).isdecimal():
        return None, ""
    k, count = int(words[2]), int(words[3])
    return (k, words[4]) if count == hosts.count and 0 < k < count else (None, "")


def _call(hosts: Hosts, address: tuple[str, int], deadline: float, seconds: float) -> None:
    line = f"{GREETING} {hosts.id} {hosts.count} {socket.gethostname()}\n".encode()
    reason = "it does not answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(address, timeout=5) as connection:
                connection.sendall(line)
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                if connection.recv(len(GO)) == GO:
                    return
                reason = "it closed the connection; see the output of process 0"
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.2)
    raise JobError(
        f"process {hosts.id} of {hosts.count} could not join process 0 at {hosts.coordinator} "
        f"within {seconds:.0f} s: {reason}."
    )
