"""Runs a job of several processes on this machine, on CPU devices, with the program used on a pod.

    python launch/local.py --hosts 2 --devices-per-host 4 configs/tiny.py \\
        --run-dir runs/two --train.steps 40

Everything after the config is passed to `paxlike train`. Each output line starts with the process
index. SIGTERM and Ctrl-C are forwarded: the run saves a checkpoint and the job exits. With
`--restarts N`, a failed job restarts from the newest complete checkpoint: immediately if it was
preempted (SIGTERM), otherwise after a delay that doubles each time. The job ends after more than
N failures in a row without a new checkpoint. Errors that a restart cannot fix (exit code 2) are
not retried.
"""

import argparse
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

USER_ERROR = 2
PREEMPTED = 128 + signal.SIGTERM
GRACE_SECONDS = 10
"""After the first failure, time for the other processes to report and exit before SIGKILL."""
MAX_DELAY = 60
"""Maximum delay before a restart, in seconds."""


def main() -> int:
    options, rest = _options(sys.argv[1:])
    supervisor = Supervisor(options, rest)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.stop)
    return supervisor.run()


def _options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--hosts", type=int, default=2, help="number of processes")
    parser.add_argument(
        "--devices-per-host", type=int, default=4, help="number of CPU devices per process"
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=0,
        help="number of restarts without a new checkpoint between them",
    )
    parser.add_argument("config", help="config file, followed by flags of `paxlike train`")
    options, rest = parser.parse_known_args(arguments)
    if options.hosts < 1 or options.devices_per_host < 1 or options.restarts < 0:
        parser.error("--hosts and --devices-per-host must be 1 or more, --restarts 0 or more")
    if options.restarts and "--run-dir" not in " ".join(rest):
        parser.error("--restarts requires --run-dir, the run directory to resume")
    return options, rest


class Supervisor:
    """Starts the job and restarts it after failures."""

    def __init__(self, options: argparse.Namespace, rest: list[str]):
        self._options, self._rest = options, rest
        self._job: Job | None = None
        self._stop_signal: int | None = None

    def run(self) -> int:
        """Returns the exit code of the last attempt."""
        failures, newest, restarts = 0, -1, self._options.restarts
        while True:
            self._job = Job(self._options, self._rest)
            if self._stop_signal is not None:
                self._job.signal(signal.SIGTERM)
            code = self._job.wait()
            if code in (0, USER_ERROR) or self._stop_signal is not None or restarts == 0:
                return code
            found = self._newest_checkpoint()
            failures, newest = (0 if found > newest else failures), max(found, newest)
            if code != PREEMPTED:
                failures += 1
                since = (
                    f"since the checkpoint of step {newest}"
                    if newest >= 0
                    else "without a checkpoint"
                )
                if failures > restarts:
                    say(f"{failures} failures in a row {since}; giving up")
                    return code
                delay = min(2 ** (failures - 1), MAX_DELAY)
                say(f"failure {failures} of {restarts} {since}; restarting in {delay} s")
                time.sleep(delay)
            else:
                say("preempted; restarting immediately")
            if self._stop_signal is not None:
                return code

    def stop(self, number: int, _frame: object) -> None:
        """Signal handler: the job saves and stops. A second signal kills it."""
        second, self._stop_signal = self._stop_signal is not None, number
        if self._job:
            self._job.signal(signal.SIGKILL if second else signal.SIGTERM)

    def _newest_checkpoint(self) -> int:
        index = next(k for k, word in enumerate(self._rest) if word.startswith("--run-dir"))
        _, equals, value = self._rest[index].partition("=")
        folder = Path(value if equals else self._rest[index + 1]) / "checkpoints"
        return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=-1)


class Job:
    """One attempt: the processes, and the threads that print their output."""

    def __init__(self, options: argparse.Namespace, rest: list[str]):
        address = f"127.0.0.1:{_free_port()}"
        self._processes, self._readers = [], []
        for k in range(options.hosts):
            command = [sys.executable, "-u", "-m", "paxlike", "train", options.config, *rest]
            command += ["--fake-devices", str(options.devices_per_host)]
            command += ["--hosts.coordinator", address]
            command += ["--hosts.count", str(options.hosts), "--hosts.id", str(k)]
            # A new session: the terminal sends Ctrl-C only to this launcher, which forwards it.
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._processes.append(process)
            reader = threading.Thread(target=_print_output, args=(k, process.stdout), daemon=True)
            reader.start()
            self._readers.append(reader)
        pids = " ".join(str(process.pid) for process in self._processes)
        say(f"started processes {pids}; coordinator {address}")

    def signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> int:
        """Returns 0 if all processes succeed, otherwise the exit code of the first failure.

        A user error (exit code 2) in any process takes precedence.
        """
        codes: dict[int, int] = {}
        deadline = None
        while len(codes) < len(self._processes):
            for k, process in enumerate(self._processes):
                if k not in codes and process.poll() is not None:
                    codes[k] = process.returncode
                    if process.returncode:
                        say(f"process {k} {_exit_reason(process.returncode)}")
                        deadline = deadline or time.monotonic() + GRACE_SECONDS
            if deadline and time.monotonic() > deadline:
                late = [k for k in range(len(self._processes)) if k not in codes]
                say(
                    f"processes {late} have not exited within {GRACE_SECONDS} s of the first "
                    "failure; killing them"
                )
                self.signal(signal.SIGKILL)
                deadline = None
            time.sleep(0.05)
        for reader in self._readers:
            reader.join(5)
        bad = [code if code > 0 else 128 - code for code in codes.values() if code]
        return USER_ERROR if USER_ERROR in bad else bad[0] if bad else 0


def _exit_reason(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"exited with code {code}"


def _print_output(k: int, output: TextIO) -> None:
    for line in output:
        # Gloo logs a line for each group of devices of a collective.
        if not line.startswith("[Gloo] Rank"):
            print(f"[{k}] {line}", end="", flush=True)


def say(message: str) -> None:
    print(f"[launch] {message}", flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
