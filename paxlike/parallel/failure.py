"""Failure propagation: when one process fails, every other process reports which one and exits.

A process that fails, or detects a hang, posts a report to the coordination service. The others see
it within a second, post their own reports, and exit. A process that posts none is lost: killed,
stopped or disconnected.
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
"""How long a failing process waits for the others' reports before it declares them lost."""
LOST = 3
"""Exit code: another process is lost or hangs; the job can be restarted."""
KEY = "paxlike/failure/"


class FailurePropagation:
    """Listens for failures of other processes until `close`; `exit` reports and ends this one."""

    def __init__(self, evidence: Callable[[], None]):
        """evidence: called once before this process exits because of a hang, to record its
        state.
        """
        self._evidence = evidence
        self._exiting, self._closed = threading.Lock(), threading.Event()
        if runtime.client() is not None:
            threading.Thread(target=self._listen, name="failure", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def fail(self, error: BaseException) -> None:
        """Ends this process after `error` in its main thread, and reports it to the others."""
        if isinstance(error, UserError | JobError):
            self.exit(
                {
                    "is": "error",
                    "code": LOST if isinstance(error, JobError) else 2,
                    "message": str(error),
                }
            )
        elif isinstance(error, KeyboardInterrupt):
            self.exit({"is": "error", "code": 130, "message": "interrupted"})
        else:
            # This process may be at fault, or it may only see the consequence of another's failure.
            trace = "".join(traceback.format_exception(error))
            self.exit(
                {"is": "crash", "code": 1, "message": f"{type(error).__name__}: {error}"[:500]},
                trace,
            )

    def exit(self, report: dict, trace: str = "") -> None:
        """Posts the report ({"is": error | crash | hang | heard, "code": ..., "message": ...}),
        prints which process failed, and exits.
        """
        if not self._exiting.acquire(blocking=False):
            threading.Event().wait()  # Another thread is about to end the process.
        # The service itself may be lost: no call to it may keep this process alive.
        lost = f"{job.process_name(0)}, the coordinator, does not answer"
        last = threading.Timer(ANSWER_SECONDS + 3, _end, (LOST, lost))
        last.daemon = True
        last.start()
        if report["is"] == "hang":
            self._evidence()
        client, reports = runtime.client(), {jax.process_index(): report}
        if client is not None:
            try:
                client.key_value_set(f"{KEY}{jax.process_index()}", json.dumps(report))
                reports = _reports(client)
            except jax.errors.JaxRuntimeError:
                reports[0] = {
                    "is": "error",
                    "code": LOST,
                    "message": "does not answer; it is the coordinator",
                }
        if report["is"] != "hang" and any(each["is"] == "hang" for each in reports.values()):
            self._evidence()
        code, message = _verdict(reports, report, trace)
        print(f"paxlike: {message}", file=sys.stderr, flush=True)
        job.wait_for_readers()
        _end(code)

    def _listen(self) -> None:
        while not self._closed.wait(LISTEN_SECONDS):
            try:
                heard = runtime.client().key_value_dir_get(KEY)
            except (jax.errors.JaxRuntimeError, AttributeError):
                # The service or its connection has ended; JAX handles the rest.
                return
            if heard and not self._closed.is_set():
                self.exit({"is": "heard", "code": LOST, "message": ""})


def _reports(client) -> dict[int, dict]:
    """Process id -> its report, for the processes that report in time."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        reports = {
            int(key.rpartition("/")[2]): json.loads(report)
            for key, report in client.key_value_dir_get(KEY)
        }
        if len(reports) == jax.process_count() or time.monotonic() > deadline:
            return reports
        time.sleep(0.1)


def _verdict(reports: dict[int, dict], own: dict, trace: str) -> tuple[int, str]:
    """(exit code, message): which process failed, as far as this one can determine."""
    silent = [job.process_name(k) for k in range(jax.process_count()) if k not in reports]
    by_kind = {
        kind: [k for k, report in sorted(reports.items()) if report["is"] == kind]
        for kind in ("error", "hang", "crash")
    }
    if own["is"] == "error":
        return own["code"], own["message"]
    if by_kind["error"]:
        k = by_kind["error"][0]
        return reports[k]["code"], f"{job.process_name(k)}: {reports[k]['message']}"
    cause = next((reports[k]["message"] for kind in ("hang", "crash") for k in by_kind[kind]), "")
    if silent:
        return (
            LOST,
            f"{' and '.join(silent)} no longer answer{'s' * (len(silent) == 1)}: killed, stopped "
            f"or disconnected. {cause}",
        )
    if own["is"] == "crash":
        return own["code"], f"{own['message']}\n{trace}"
    k = (by_kind["hang"] or by_kind["crash"])[0]
    return LOST, f"{job.process_name(k)}: {cause}"


def _end(code: int, message: str = "") -> None:
    if message:
        print(f"paxlike: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
