"""Run on Google Kubernetes Engine as a JobSet: TPU slices, GPU nodes, or Pathways.

    python launch/gke.py start NAME --image IMAGE --accelerator tpu-v5p-slice \\
        --topology 4x4x8 [--slices 2] -- configs/palm_8b.py …
    python launch/gke.py start NAME --image IMAGE --accelerator nvidia-h100-80gb \\
        --nodes 16 -- configs/palm_8b.py …
    python launch/gke.py start NAME --image IMAGE --accelerator tpu-v5p-slice \\
        --topology 4x4x8 --slices 2 --pathways --pathways-dir gs://BUCKET/pathways \\
        --head-node-pool POOL -- configs/palm_8b.py …
    python launch/gke.py state|logs|stop|delete NAME

The cluster needs JobSet 0.8 or newer. Cluster and namespace are kubectl's current context and
"default", or --context and --namespace. --dry-run prints the commands with the manifest. `stop`
saves a checkpoint and suspends the JobSet; the same `start` command resumes it. On TPUs, JAX finds
the other processes through variables that GKE sets in each pod; on GPU nodes, the launcher passes
--hosts.coordinator, --hosts.count and --hosts.id.
"""

import argparse
import json
import sys

from jobset import check_names, gpu_jobset, tpu_jobset
from pathways import pathways_jobset
from steps import Step, confirm, run_steps, split_at_dashes


def main() -> int:
    arguments, train = split_at_dashes(sys.argv[1:])
    parser = make_parser()
    flags = parser.parse_args(arguments)
    if flags.command == "start" and not train:
        parser.error(
            "start needs the arguments of `paxlike train` after --, such as: "
            "-- configs/palm_8b.py --run-dir gs://BUCKET/RUN"
        )
    if flags.command != "start" and train:
        parser.error(f"{flags.command} takes nothing after --, got {train}")
    if flags.command == "delete" and not confirm(
        f"Delete the JobSet {flags.name}? Data on its volumes is kept.", flags
    ):
        print("nothing deleted")
        return 1
    try:
        return run_steps(COMMANDS[flags.command](flags, train), flags.dry_run)
    except ValueError as error:
        parser.error(str(error))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gke.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        add = commands.add_parser(command).add_argument
        add("name", metavar="NAME", help="the JobSet")
        add("--context", help="kubectl context")
        add("--namespace", default="default", help="Kubernetes namespace (default %(default)s)")
        add("--dry-run", action="store_true", help="print the commands without running them")
        if command == "delete":
            add("--yes", action="store_true", help="do not ask for confirmation")
        if command == "start":
            add_start_flags(add)
    return parser


def add_start_flags(add) -> None:
    add(
        "--image",
        required=True,
        help="container image with paxlike installed and the configs in its working directory",
    )
    add(
        "--accelerator",
        required=True,
        help="node label, such as tpu-v5p-slice or nvidia-h100-80gb",
    )
    add("--topology", help="topology of a TPU slice in chips, such as 4x4x8")
    add(
        "--slices",
        type=int,
        default=1,
        help="number of TPU slices, each a node pool; set mesh.pod to the same number",
    )
    add("--nodes", type=int, help="number of GPU nodes")
    add("--per-host", type=int, help="chips per TPU host (default 4) or GPUs per node (default 8)")
    add("--spot", action="store_true", help="use spot nodes")
    add(
        "--max-restarts",
        type=int,
        default=10,
        help="restarts after crashes; preemptions do not count (default %(default)s)",
    )
    add(
        "--volume",
        action="append",
        default=[],
        metavar="SOURCE=/PATH",
        help="SOURCE is gs://BUCKET (GCS FUSE), /FOLDER of the node, or the name of a "
        "PersistentVolumeClaim; repeatable",
    )
    add(
        "--env",
        action="append",
        default=[],
        type=variable,
        metavar="NAME=VALUE",
        help="environment variable; repeatable",
    )
    add("--service-account", help="Kubernetes service account with access to the buckets")
    add("--pathways", action="store_true", help="one Python process drives the chips of all slices")
    add("--pathways-dir", help="gs:// folder for scratch files of Pathways")
    add("--head-node-pool", help="CPU node pool for the Python process, 64 cores or more")
    add(
        "--pathways-version",
        default="latest",
        help="tag of Google's Pathways images; must match the image's JAX version "
        "(default %(default)s)",
    )


def variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def start(flags: argparse.Namespace, train: list[str]) -> list[Step]:
    """Raises ValueError if flags are missing or contradict each other."""
    if bool(flags.topology) == bool(flags.nodes):
        raise ValueError("give --topology (and --slices) for TPUs, or --nodes for GPUs")
    if flags.pathways and not (flags.topology and flags.pathways_dir and flags.head_node_pool):
        raise ValueError("--pathways needs --topology, --pathways-dir and --head-node-pool")
    if (flags.pathways_dir or flags.head_node_pool) and not flags.pathways:
        raise ValueError("--pathways-dir and --head-node-pool require --pathways")
    flags.per_host = flags.per_host or (4 if flags.topology else 8)
    make = pathways_jobset if flags.pathways else tpu_jobset if flags.topology else gpu_jobset
    manifest = make(flags, train)
    check_names(manifest)
    return [Step([*kubectl(flags), "apply", "--filename=-"], stdin=json.dumps(manifest, indent=2))]


def state(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    return [
        Step([*kubectl(flags), "get", "jobset", flags.name]),
        Step([*kubectl(flags), "get", "pods", selector(flags), "--output=wide"]),
    ]


def logs(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    return [
        Step(
            [
                *kubectl(flags),
                "logs",
                selector(flags),
                "--follow",
                "--prefix",
                "--all-containers",
                # kubectl follows at most five pods by default.
                "--max-log-requests=100000",
            ]
        )
    ]


def stop(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    patch = json.dumps({"spec": {"suspend": True}})
    return [
        Step([*kubectl(flags), "patch", "jobset", flags.name, "--type=merge", f"--patch={patch}"])
    ]


def delete(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    return [Step([*kubectl(flags), "delete", "jobset", flags.name])]


def kubectl(flags: argparse.Namespace) -> list[str]:
    return [
        "kubectl",
        *([f"--context={flags.context}"] if flags.context else []),
        f"--namespace={flags.namespace}",
    ]


def selector(flags: argparse.Namespace) -> str:
    return f"--selector=jobset.sigs.k8s.io/jobset-name={flags.name}"


COMMANDS = {"start": start, "state": state, "logs": logs, "stop": stop, "delete": delete}

if __name__ == "__main__":
    sys.exit(main())
