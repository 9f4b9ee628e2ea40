"""The end of a job that came to harm: every process learns of it, says who is to blame, and exits.

A process that fails, or takes another for hung, leaves a word with the coordination service. All others hear it within a second, leave
theirs, and exit, too; who leaves none is silent: killed, stopped, or cut off.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

import jax

from paxlike.config import JobError, UserError
from paxlike.parallel import job, runtime

LISTEN_SECONDS = 1.0
ANSWER_SECONDS = 5.0
"""How long a process that leaves waits for the others' words before it calls them silent."""
LOST = 3
"""Exit code: another process is lost or hangs; the job can be started again."""
KEY = "paxlike/departure/"


class Departure:
    """Listens for the departure of other processes until `close`; `leave` ends this one. Alone, it has nobody to listen to."""

    def __init__(self, evidence: Callable[[], None]):
        """evidence(): called once before this process exits because one hangs, to write down where it stands."""
        self._evidence = evidence
        self._leaving, self._closed = threading.Lock(), threading.Event()
        if runtime.client() is not None:
            threading.Thread(target=self._listen, name="departure", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def fail(self, error: BaseException) -> None:
        """Ends this process, whose main thread met `error`, and tells the others."""
        if isinstance(error, UserError | JobError):
            self.leave({"is": "error", "code": LOST if isinstance(error, JobError) else 2, "message": str(error)})
        elif isinstance(error, KeyboardInterrupt):
            self.leave({"is": "error", "code": 130, "message": "interrupted"})
        else:
            # Perhaps this process's own fault, perhaps only what it sees of another one's end.
            trace = "".join(traceback.format_exception(error))
            self.leave({"is": "crash", "code": 1, "message": f"{type(error).__name__}: {error}"[:500]}, trace)

    def leave(self, word: dict, trace: str = "") -> None:
        """Gives the word ({"is": error | crash | hang | heard, "code": …, "message": …}), names who is to blame, and exits."""
        if not self._leaving.acquire(blocking=False):
            threading.Event().wait()  # Another thread is about to end the process.
        # The service may be what is lost: nothing that waits for it may keep this process.
        lost = f"{job.called(0)}, which coordinates the job, does not answer"
        last = threading.Timer(ANSWER_SECONDS + 3, _end, (LOST, lost))
        last.daemon = True
        last.start()
        if word["is"] == "hang":
            self._evidence()
        client, words = runtime.client(), {jax.process_index(): word}
        if client is not None:
            try:
                client.key_value_set(f"{KEY}{jax.process_index()}", json.dumps(word))
                words = _words(client)
            except jax.errors.JaxRuntimeError:
                words[0] = {"is": "error", "code": LOST, "message": "does not answer; it coordinates the job"}
        if word["is"] != "hang" and any(each["is"] == "hang" for each in words.values()):
            self._evidence()
        code, message = _verdict(words, word, trace)
        print(f"paxlike: {message}", file=sys.stderr, flush=True)
        job.linger()
        _end(code)

    def _listen(self) -> None:
        while not self._closed.wait(LISTEN_SECONDS):
            try:
                heard = runtime.client().key_value_dir_get(KEY)
            except (jax.errors.JaxRuntimeError, AttributeError):
                return  # The service, or this process's part in it, has ended; JAX sees to the rest.
            if heard and not self._closed.is_set():
                self.leave({"is": "heard", "code": LOST, "message": ""})


def _words(client) -> dict[int, dict]:
    """Process -> its word, of those that answer in time."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        words = {int(key.rpartition("/")[2]): json.loads(word) for key, word in client.key_value_dir_get(KEY)}
        if len(words) == jax.process_count() or time.monotonic() > deadline:
            return words
        time.sleep(0.1)


def _verdict(words: dict[int, dict], own: dict, trace: str) -> tuple[int, str]:
    """(exit code, message): whose fault it is, as far as this process can tell."""
    silent = [job.called(k) for k in range(jax.process_count()) if k not in words]
    by_kind = {
        kind: [k for k, word in sorted(words.items()) if word["is"] == kind] for kind in ("error", "hang", "crash")
    }
    if own["is"] == "error":
        return own["code"], own["message"]
    if by_kind["error"]:
        k = by_kind["error"][0]
        return words[k]["code"], f"{job.called(k)}: {words[k]['message']}"
    told = next((words[k]["message"] for kind in ("hang", "crash") for k in by_kind[kind]), "")
    if silent:
        return (
            LOST,
            f"{' and '.join(silent)} no longer answer{'s' * (len(silent) == 1)}: killed, stopped or cut off. {told}",
        )
    if own["is"] == "crash":
        return own["code"], f"{own['message']}\n{trace}"
    k = (by_kind["hang"] or by_kind["crash"])[0]
    return LOST, f"{job.called(k)}: {told}"


def _end(code: int, message: str = "") -> None:
    if message:
        print(f"paxlike: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
