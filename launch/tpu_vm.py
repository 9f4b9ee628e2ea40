"""Run on Cloud TPU VMs, one slice or several.

    python launch/tpu_vm.py create NAME --accelerator-type v5p-64 \\
        --runtime-version v2-alpha-tpuv5 [--queued --slices 2] [--spot]
    python launch/tpu_vm.py state NAME [--queued]
    python launch/tpu_vm.py install NAME [--queued]
        copy the committed files to every worker and install their requirements
    python launch/tpu_vm.py start NAME [--queued] -- configs/palm_8b.py --run-dir gs://BUCKET/RUN
    python launch/tpu_vm.py logs NAME [--queued]
        follow the logs of all workers until training ends
    python launch/tpu_vm.py stop NAME [--queued]
        save a checkpoint and exit; `start` resumes the run
    python launch/tpu_vm.py delete NAME [--queued]

Every command takes --project and --zone (or CLOUDSDK_CORE_PROJECT and CLOUDSDK_COMPUTE_ZONE) and
--dry-run, which prints the commands. On the workers, the commands call `tpu_worker.sh`. JAX reads
the coordinator, the number of processes and the process index from the VM's metadata, also with
several slices.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from steps import Step, confirm, flag_or_variable, run_steps, split_at_dashes

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    arguments, train = split_at_dashes(sys.argv[1:])
    parser = make_parser()
    flags = parser.parse_args(arguments)
    flags.project = flag_or_variable(parser, "--project", flags.project, "CLOUDSDK_CORE_PROJECT")
    flags.zone = flag_or_variable(parser, "--zone", flags.zone, "CLOUDSDK_COMPUTE_ZONE")
    if flags.command == "start" and not train:
        parser.error(
            "start needs the arguments of `paxlike train` after --, such as: "
            "-- configs/palm_8b.py --run-dir gs://BUCKET/RUN"
        )
    if flags.command != "start" and train:
        parser.error(f"{flags.command} takes nothing after --, got {train}")
    if flags.command == "create" and flags.slices > 1 and not flags.queued:
        parser.error(f"--slices {flags.slices} requires --queued")
    if flags.command == "delete" and not confirm(f"Delete {flags.name} and its disks?", flags):
        print("nothing deleted")
        return 1
    return run_steps(COMMANDS[flags.command](flags, train), flags.dry_run)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tpu_vm.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        add = commands.add_parser(command).add_argument
        add("name", metavar="NAME", help="the TPU VM, or the queued resource with --queued")
        add("--project", help="Google Cloud project (or CLOUDSDK_CORE_PROJECT)")
        add("--zone", help="Google Cloud zone (or CLOUDSDK_COMPUTE_ZONE)")
        add(
            "--queued",
            action="store_true",
            help="NAME is a queued resource; the command applies to all its slices",
        )
        add("--dry-run", action="store_true", help="print the commands without running them")
        if command == "create":
            add("--accelerator-type", required=True, help="type of each slice, such as v5p-64")
            add("--runtime-version", required=True, help="VM image, such as v2-alpha-tpuv5")
            add(
                "--slices",
                type=int,
                default=1,
                help="number of slices, joined by the data-center network; set mesh.pod to the "
                "same number",
            )
            add("--spot", action="store_true", help="cheaper, but can be preempted at any time")
        if command == "install":
            add(
                "--python",
                default="python3.11",
                help="Python version; installed with apt if missing (default %(default)s)",
            )
        if command == "start":
            add(
                "--max-restarts",
                type=int,
                default=3,
                help="restarts after crashes, on every worker (default %(default)s)",
            )
        if command == "delete":
            add("--yes", action="store_true", help="do not ask for confirmation")
    return parser


def create(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    """Creates a TPU VM, or a queued resource that waits for capacity. Reuses an existing one."""
    if not flags.queued:
        options = [f"--version={flags.runtime_version}"]
    elif flags.slices == 1:
        options = [f"--runtime-version={flags.runtime_version}", f"--node-id={flags.name}"]
    else:
        options = [
            f"--runtime-version={flags.runtime_version}",
            f"--node-count={flags.slices}",
            f"--node-prefix={flags.name}",
        ]
    options += [f"--accelerator-type={flags.accelerator_type}", *(["--spot"] if flags.spot else [])]
    return [
        Step(
            gcloud(flags, "create", flags.name, *options),
            unless=gcloud(flags, "describe", flags.name),
        )
    ]


def state(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    return [Step(gcloud(flags, "describe", flags.name, "--format=value(state)"))]


def install(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    """Copies the committed files to every worker and installs them in a virtual environment."""
    archive = str(Path(tempfile.gettempdir()) / f"paxlike-{flags.name}.tar.gz")
    # Removes old source files, but keeps runs, logs and the virtual environment.
    unpack = (
        "mkdir -p paxlike && cd paxlike && rm -rf paxlike configs launch "
        "&& tar -xzf ../paxlike.tar.gz"
    )
    return [
        Step(["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={archive}", "HEAD"]),
        Step(gcloud(flags, "scp", archive, f"{flags.name}:paxlike.tar.gz", *all_workers(flags))),
        Step(gcloud(flags, "ssh", flags.name, *all_workers(flags), f"--command={unpack}")),
        on_workers(flags, "install", flags.python),
    ]


def start(flags: argparse.Namespace, train: list[str]) -> list[Step]:
    return [on_workers(flags, "start", str(flags.max_restarts), *train)]


def logs(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    return [on_workers(flags, "logs")]


def stop(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    return [on_workers(flags, "stop")]


def delete(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    # --force also deletes the slices of the queued resource.
    return [
        Step(gcloud(flags, "delete", flags.name, "--quiet", *(["--force"] if flags.queued else [])))
    ]


def gcloud(flags: argparse.Namespace, action: str, *arguments: str) -> list[str]:
    kind = "queued-resources" if flags.queued else "tpu-vm"
    return [
        "gcloud",
        "compute",
        "tpus",
        kind,
        action,
        *arguments,
        f"--project={flags.project}",
        f"--zone={flags.zone}",
    ]


def all_workers(flags: argparse.Namespace) -> list[str]:
    # All workers at once: in gcloud's default batches of 64, the second batch would wait until the
    # logs of the first end.
    return ["--worker=all", *(["--node=all", "--batch-size=all"] if flags.queued else [])]


def on_workers(flags: argparse.Namespace, *arguments: str) -> Step:
    # gcloud passes --command to each worker's shell, which removes one level of quoting.
    command = shlex.join(["paxlike/launch/tpu_worker.sh", *arguments])
    return Step(gcloud(flags, "ssh", flags.name, *all_workers(flags), f"--command={command}"))


COMMANDS = {
    "create": create,
    "state": state,
    "install": install,
    "start": start,
    "logs": logs,
    "stop": stop,
    "delete": delete,
}

if __name__ == "__main__":
    sys.exit(main())
