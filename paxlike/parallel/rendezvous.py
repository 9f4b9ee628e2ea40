"""Waits until every process of a job has come, and says which ones have not.

JAX's own start waits, too, but when its time is over it ends the process without a name. So process 0 first takes one line from each
of the others, at the address where JAX's coordinator will listen next.
"""

import socket
import time

from paxlike.config import Hosts, JobError, UserError

GREETING = "paxlike process"
GO = b"go\n"
_LONGEST_LINE = 200


def gather(hosts: Hosts, seconds: float) -> None:
    """Returns when all `hosts.count` processes have called it. Raises JobError naming those that have not after `seconds`.

    Raises UserError where two processes say the same number, or the address is none of process 0.
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
    came: dict[int, tuple[socket.socket, str]] = {}
    try:
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server(address, family=family, backlog=hosts.count) as server:
            while len(came) < hosts.count - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                connection, _ = server.accept()
                k, name = _read(connection, hosts)
                if k is None:
                    connection.close()
                elif k in came:
                    raise UserError(f"two processes say that they are process {k}: on {came[k][1]} and on {name}.")
                else:
                    came[k] = (connection, name)
            for connection, _ in came.values():
                connection.sendall(GO)
    except TimeoutError:
        absent = [k for k in range(1, hosts.count) if k not in came]
        there = ", ".join(f"{k} on {name}" for k, (_, name) in sorted(came.items())) or "none"
        raise JobError(
            f"processes {absent} of {hosts.count} have not come to {hosts.coordinator} within {seconds:.0f} s; there are, besides "
            f"process 0: {there}."
        ) from None
    except OSError as error:
        raise UserError(f"process 0 cannot listen at hosts.coordinator {hosts.coordinator}: {error}.") from error
    finally:
        for connection, _ in came.values():
            connection.close()


def _read(connection: socket.socket, hosts: Hosts) -> tuple[int | None, str]:
    """(number, host) of who called; (None, "") of a stranger."""
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
                reason = "it has closed the connection: see what process 0 says"
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.2)
    raise JobError(
        f"process {hosts.id} of {hosts.count} has not been let in by process 0 at {hosts.coordinator} within {seconds:.0f} s: {reason}."
    )
