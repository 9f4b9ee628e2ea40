"""Runs a job of many processes on this machine, on CPU devices: the same program as on a pod.

    python launch/local.py --hosts 2 --devices-per-host 4 configs/tiny.py --run-dir runs/two --train.steps 40

What follows the config is for `paxlike train`. Each line of output begins with the number of the process it comes from. SIGTERM and
Ctrl-C are passed on: the run is saved, and the job ends. With `--restarts N` the job is started again, from the newest whole
checkpoint, when it comes to harm: at once where the processes were told to stop (preemption), else after a pause that doubles; N
failures in a row without a new checkpoint end it. A mistake of the user (exit code 2) is not tried again.
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
"""After the first process has failed, the others have so long to tell why; then they are killed."""
LONGEST_PAUSE = 60


def main() -> int:
    options, rest = _options(sys.argv[1:])
    supervisor = Supervisor(options, rest)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.stop)
    return supervisor.run()


def _options(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--hosts", type=int, default=2, help="processes")
    parser.add_argument("--devices-per-host", type=int, default=4, help="CPU devices of each")
    parser.add_argument(
        "--restarts", type=int, default=0, help="failures in a row without progress that are tried again"
    )
    parser.add_argument("config", help="a config file, then flags of `paxlike train`")
    options, rest = parser.parse_known_args(arguments)
    if options.hosts < 1 or options.devices_per_host < 1 or options.restarts < 0:
        parser.error("--hosts and --devices-per-host must be 1 or more, --restarts 0 or more")
    if options.restarts and "--run-dir" not in " ".join(rest):
        parser.error("--restarts needs a --run-dir: the folder to go on in")
    return options, rest


class Supervisor:
    """Starts the job, and again where that makes sense."""

    def __init__(self, options: argparse.Namespace, rest: list[str]):
        self._options, self._rest = options, rest
        self._job: Job | None = None
        self._told: int | None = None

    def run(self) -> int:
        """The exit code of the last attempt."""
        failures, progress = 0, -1
        while True:
            self._job = Job(self._options, self._rest)
            if self._told is not None:
                self._job.signal(signal.SIGTERM)
            code = self._job.wait()
            if code in (0, USER_ERROR) or self._told is not None:
                return code
            if self._options.restarts == 0:
                return code
            found = self._newest_checkpoint()
            failures, progress = (0 if found > progress else failures), max(found, progress)
            if code != PREEMPTED:
                failures += 1
                if failures > self._options.restarts:
                    say(f"{failures} failures in a row without a checkpoint after step {progress}; giving up")
                    return code
                pause = min(2 ** (failures - 1), LONGEST_PAUSE)
                say(
                    f"failure {failures} of {self._options.restarts} since the checkpoint of step {progress}; starting again in {pause} s"
                )
                time.sleep(pause)
            else:
                say("told to stop; starting again at once")
            if self._told is not None:
                return code

    def stop(self, number: int, _frame: object) -> None:
        """The job saves and stops; a second signal ends it at once."""
        again, self._told = self._told is not None, number
        if self._job:
            self._job.signal(signal.SIGKILL if again else signal.SIGTERM)

    def _newest_checkpoint(self) -> int:
        index = next(k for k, word in enumerate(self._rest) if word.startswith("--run-dir"))
        _, equals, value = self._rest[index].partition("=")
        folder = Path(value if equals else self._rest[index + 1]) / "checkpoints"
        return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=-1)


class Job:
    """One attempt: the processes, and the threads that show what they write."""

    def __init__(self, options: argparse.Namespace, rest: list[str]):
        address = f"127.0.0.1:{_free_port()}"
        self._processes, self._readers = [], []
        for k in range(options.hosts):
            command = [
                sys.executable, "-u", "-m", "paxlike", "train", options.config, *rest, "--fake-devices", str(options.devices_per_host),
                "--hosts.coordinator", address, "--hosts.count", str(options.hosts), "--hosts.id", str(k),
            ]  # fmt: skip
            # A session of its own: Ctrl-C in a terminal goes to this launcher alone, which passes it on.
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._processes.append(process)
            self._readers.append(threading.Thread(target=_show, args=(k, process.stdout), daemon=True))
            self._readers[-1].start()
        say(f"processes {' '.join(str(process.pid) for process in self._processes)} meet at {address}")

    def signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> int:
        """0 where all ended well; else the code of the first that did not, user errors before all."""
        codes: dict[int, int] = {}
        deadline = None
        while len(codes) < len(self._processes):
            for k, process in enumerate(self._processes):
                if k not in codes and process.poll() is not None:
                    codes[k] = process.returncode
                    if process.returncode:
                        say(f"process {k} {_ended(process.returncode)}")
                        deadline = deadline or time.monotonic() + GRACE_SECONDS
            if deadline and time.monotonic() > deadline:
                late = [k for k in range(len(self._processes)) if k not in codes]
                say(f"processes {late} have not ended within {GRACE_SECONDS} s of the first failure; killing them")
                self.signal(signal.SIGKILL)
                deadline = None
            time.sleep(0.05)
        for reader in self._readers:
            reader.join(5)
        bad = [code if code > 0 else 128 - code for code in codes.values() if code]
        return USER_ERROR if USER_ERROR in bad else bad[0] if bad else 0


def _ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _show(k: int, output: TextIO) -> None:
    for line in output:
        if not line.startswith("[Gloo] Rank"):  # A line for each collective's group of devices, from the runtime.
            print(f"[{k}] {line}", end="", flush=True)


def say(message: str) -> None:
    print(f"[launch] {message}", flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
