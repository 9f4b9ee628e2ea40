"""Cloud TPU VMs, one slice or several: create or reuse, install, start on every worker, follow the logs, stop, delete.

    python launch/tpu_vm.py create  NAME --accelerator-type v5p-64 --runtime-version v2-alpha-tpuv5 [--queued --slices 2] [--spot]
    python launch/tpu_vm.py state   NAME [--queued]
    python launch/tpu_vm.py install NAME [--queued]                  the committed tree, and its requirements
    python launch/tpu_vm.py start   NAME [--queued] -- configs/palm_8b.py --run-dir gs://BUCKET/RUN
    python launch/tpu_vm.py logs    NAME [--queued]                  of all workers, until training ends
    python launch/tpu_vm.py stop    NAME [--queued]                  saves, then ends; `start` goes on from there
    python launch/tpu_vm.py delete  NAME [--queued]

Each takes --project and --zone (or CLOUDSDK_CORE_PROJECT and CLOUDSDK_COMPUTE_ZONE) and --dry-run, which prints the commands.
On the workers `tpu_worker.sh` does the work. JAX finds the coordinator, the number of processes and each process's place from
the VM's metadata, across slices too, so nothing about them is passed.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from steps import Step, carry_out, confirmed, given_or_set, split_at_dashes

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    own, train = split_at_dashes(sys.argv[1:])
    parser = make_parser()
    flags = parser.parse_args(own)
    flags.project = given_or_set(parser, "--project", flags.project, "CLOUDSDK_CORE_PROJECT")
    flags.zone = given_or_set(parser, "--zone", flags.zone, "CLOUDSDK_COMPUTE_ZONE")
    if flags.verb == "start" and not train:
        parser.error("start needs what to train after --, such as: -- configs/palm_8b.py --run-dir gs://BUCKET/RUN")
    if flags.verb != "start" and train:
        parser.error(f"{flags.verb} takes nothing after --, got {train}")
    if flags.verb == "create" and flags.slices > 1 and not flags.queued:
        parser.error(f"--slices {flags.slices}: several slices come as a queued resource only; give --queued too")
    if flags.verb == "delete" and not confirmed(f"Delete {flags.name} and what is on its disks?", flags):
        print("nothing deleted")
        return 1
    return carry_out(VERBS[flags.verb](flags, train), flags.dry_run)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tpu_vm.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        add = verbs.add_parser(verb).add_argument
        add("name", metavar="NAME", help="the TPU VM, or the queued resource")
        add("--project")
        add("--zone")
        add("--queued", action="store_true", help="NAME is a queued resource; all its slices are meant")
        add("--dry-run", action="store_true", help="print the commands, run nothing")
        if verb == "create":
            add("--accelerator-type", required=True, help="of each slice, such as v5p-64")
            add("--runtime-version", required=True, help="the VM's image, such as v2-alpha-tpuv5")
            add(
                "--slices",
                type=int,
                default=1,
                help="joined over the data-centre network; mesh.pod should be the same number",
            )
            add("--spot", action="store_true", help="cheaper, and taken away at any time")
        if verb == "install":
            add("--python", default="python3.11", help="installed with apt where it is missing (default %(default)s)")
        if verb == "start":
            add("--max-restarts", type=int, default=3, help="after a crash, on every worker (default %(default)s)")
        if verb == "delete":
            add("--yes", action="store_true", help="do not ask")
    return parser


def create(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    """A TPU VM at once, or a queued resource that is filled when there is room. One that is there already is reused."""
    if not flags.queued:
        what = [f"--version={flags.runtime_version}"]
    elif flags.slices == 1:
        what = [f"--runtime-version={flags.runtime_version}", f"--node-id={flags.name}"]
    else:
        what = [
            f"--runtime-version={flags.runtime_version}",
            f"--node-count={flags.slices}",
            f"--node-prefix={flags.name}",
        ]
    what += [f"--accelerator-type={flags.accelerator_type}", *(["--spot"] if flags.spot else [])]
    return [Step(gcloud(flags, "create", flags.name, *what), unless=gcloud(flags, "describe", flags.name))]


def state(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    return [Step(gcloud(flags, "describe", flags.name, "--format=value(state)"))]


def install(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    """What is committed travels as an archive; a virtual environment beside it gets the requirements."""
    archive = str(Path(tempfile.gettempdir()) / f"paxlike-{flags.name}.tar.gz")
    # What an older tree had and this one has not must not stay; runs, logs and the virtual environment do.
    unpack = "mkdir -p paxlike && cd paxlike && rm -rf paxlike configs launch && tar -xzf ../paxlike.tar.gz"
    return [
        Step(["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={archive}", "HEAD"]),
        Step(gcloud(flags, "scp", archive, f"{flags.name}:paxlike.tar.gz", *everywhere(flags))),
        Step(gcloud(flags, "ssh", flags.name, *everywhere(flags), f"--command={unpack}")),
        on_workers(flags, "install", flags.python),
    ]


def start(flags: argparse.Namespace, train: list[str]) -> list[Step]:
    return [on_workers(flags, "start", str(flags.max_restarts), *train)]


def logs(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    return [on_workers(flags, "logs")]


def stop(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    return [on_workers(flags, "stop")]


def delete(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    # --force: the queued resource's slices go with it.
    return [Step(gcloud(flags, "delete", flags.name, "--quiet", *(["--force"] if flags.queued else [])))]


def gcloud(flags: argparse.Namespace, verb: str, *arguments: str) -> list[str]:
    kind = "queued-resources" if flags.queued else "tpu-vm"
    return ["gcloud", "compute", "tpus", kind, verb, *arguments, f"--project={flags.project}", f"--zone={flags.zone}"]


def everywhere(flags: argparse.Namespace) -> list[str]:
    # All at the same time: with gcloud's batches of 64 the later workers would wait for the logs of the first to end.
    return ["--worker=all", *(["--node=all", "--batch-size=all"] if flags.queued else [])]


def on_workers(flags: argparse.Namespace, *arguments: str) -> Step:
    # gcloud hands --command to the shell of each worker, which takes one layer of quotes off.
    command = shlex.join(["paxlike/launch/tpu_worker.sh", *arguments])
    return Step(gcloud(flags, "ssh", flags.name, *everywhere(flags), f"--command={command}"))


VERBS = {
    "create": create, "state": state, "install": install, "start": start, "logs": logs, "stop": stop, "delete": delete,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
