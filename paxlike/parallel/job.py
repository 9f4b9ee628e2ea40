"""Exchanges small values between the processes of a job, through the coordination service of
`jax.distributed`.

In a job of one process every function works and returns immediately.
"""

import json
import re
import time
from collections.abc import Callable
from typing import TypeVar

import jax

from paxlike.config import JobError, UserError
from paxlike.parallel import runtime

_names: list[str] = []
_exchanges: dict[str, int] = {}


def exchange(name: str, value: object, seconds: float) -> list:
    """The `value` (any JSON value) of every process, in order of process ids. All must call it.

    Raises JobError naming the processes that did not call it within `seconds`.
    """
    client = runtime.client()
    if client is None:
        return [value]
    # The same name may be used again, for example after a rewind.
    _exchanges[name] = _exchanges.get(name, 0) + 1
    key = f"paxlike/{name}/{_exchanges[name]}"
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    try:
        client.wait_at_barrier(key, round(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise JobError(f"{name}: {_absent(client, key, seconds)} ({_first_line(error)})") from error
    found = dict(client.key_value_dir_get(f"{key}/"))
    return [json.loads(found[f"{key}/{k}"]) for k in range(jax.process_count())]


def _absent(client, key: str, seconds: float) -> str:
    try:
        present = {int(name.rpartition("/")[2]) for name, _ in client.key_value_dir_get(f"{key}/")}
    except jax.errors.JaxRuntimeError:
        return f"{process_name(0)}, the coordinator, does not answer"
    absent = [process_name(k) for k in range(jax.process_count()) if k not in present]
    return f"{' and '.join(absent) or 'no process'} did not respond within {seconds:.0f} s"


T = TypeVar("T")


def each(name: str, action: Callable[[], T], seconds: float) -> T:
    """Runs `action` in every process; returns this process's result.

    A UserError in one process is raised in all of them and names that process.
    """
    error: UserError | None = None
    try:
        value = action()
    except UserError as raised:
        error = raised
    outcomes = exchange(name, None if error is None else str(error), seconds)
    failed = [(k, message) for k, message in enumerate(outcomes) if message is not None]
    if failed:
        wait_for_readers()
        raise error or UserError(f"{process_name(failed[0][0])}: {failed[0][1]}")
    return value


def first(name: str, action: Callable[[], T], seconds: float) -> T:
    """Runs `action` in process 0 only; returns its result (any JSON value) in every process.

    Raises as `each` does.
    """
    value = each(name, lambda: action() if jax.process_index() == 0 else None, seconds)
    return exchange(f"{name}: result", value, seconds)[0]


def wait_for_readers() -> None:
    """Process 0 waits a second before it exits, because the service ends with it and the other
    processes are still reading their messages.
    """
    if jax.process_index() == 0 and runtime.client() is not None:
        time.sleep(1)


def exchange_host_names(host: str, seconds: float) -> None:
    """Sends this process's host name to the others, for messages.

    Raises JobError naming the processes that did not send theirs within `seconds`.
    """
    _names[:] = exchange("host names", host, seconds)


def process_name(k: int) -> str:
    """The name of process k in messages."""
    return f"process {k} on {_names[k]}" if k < len(_names) else f"process {k}"


def _first_line(error: Exception) -> str:
    return re.split(r"[\n.]", str(error).strip())[0][:200] or type(error).__name__
