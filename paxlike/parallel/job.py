"""What the processes of a job tell each other besides arrays: through the coordination service of `jax.distributed`.

A process that is alone (no job) meets itself: every function works and returns at once.
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
_met: dict[str, int] = {}


def exchange(name: str, value: object, seconds: float) -> list:
    """What every process gave for `value` (anything JSON can hold), in the order of their numbers. All must call it.

    Raises JobError naming the processes that did not come within `seconds`.
    """
    client = runtime.client()
    if client is None:
        return [value]
    # The same name may be met at again, after a rewind for example.
    _met[name] = _met.get(name, 0) + 1
    key = f"paxlike/{name}/{_met[name]}"
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    try:
        client.wait_at_barrier(key, round(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        raise JobError(f"{name}: {_absent(client, key, seconds)} ({_first_line(error)})") from error
    found = dict(client.key_value_dir_get(f"{key}/"))
    return [json.loads(found[f"{key}/{k}"]) for k in range(jax.process_count())]


def _absent(client, key: str, seconds: float) -> str:
    try:
        came = {int(name.rpartition("/")[2]) for name, _ in client.key_value_dir_get(f"{key}/")}
    except jax.errors.JaxRuntimeError:
        return f"{called(0)}, which coordinates the job, does not answer"
    absent = [called(k) for k in range(jax.process_count()) if k not in came]
    return f"{' and '.join(absent) or 'nobody'} did not come within {seconds:.0f} s"


T = TypeVar("T")


def each(name: str, action: Callable[[], T], seconds: float) -> T:
    """What `action` returned in this process. All run it; a UserError in one of them is raised in all, naming the process."""
    value, error = None, None
    try:
        value = action()
    except UserError as raised:
        error = raised
    outcomes = exchange(name, None if error is None else str(error), seconds)
    failed = [(k, message) for k, message in enumerate(outcomes) if message is not None]
    if failed:
        linger()
        raise error or UserError(f"{called(failed[0][0])}: {failed[0][1]}")
    return value


def first(name: str, action: Callable[[], object], seconds: float) -> object:
    """What `action` returned (anything JSON can hold) in process 0, the only one that runs it. An error as in `each`."""
    value = each(name, lambda: action() if jax.process_index() == 0 else None, seconds)
    return exchange(f"{name}: result", value, seconds)[0]


def linger() -> None:
    """The service ends with process 0, which therefore waits a moment: the others are still reading what was said."""
    if jax.process_index() == 0 and runtime.client() is not None:
        time.sleep(1)


def introduce(host: str, seconds: float) -> None:
    """Tells the others the name of this process's host, for messages. Raises JobError naming those that did not."""
    _names[:] = exchange("introduction", host, seconds)


def called(k: int) -> str:
    """Process k as messages name it."""
    return f"process {k} on {_names[k]}" if k < len(_names) else f"process {k}"


def _first_line(error: Exception) -> str:
    return re.split(r"[\n.]", str(error).strip())[0][:200] or type(error).__name__
