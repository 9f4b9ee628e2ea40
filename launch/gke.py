"""A run on Google Kubernetes Engine as a JobSet: TPU slices, GPU nodes, or Pathways.

    python launch/gke.py start NAME --image IMAGE --accelerator tpu-v5p-slice --topology 4x4x8 [--slices 2] -- configs/palm_8b.py …
    python launch/gke.py start NAME --image IMAGE --accelerator nvidia-h100-80gb --nodes 16 -- configs/palm_8b.py …
    python launch/gke.py start NAME --image IMAGE --accelerator tpu-v5p-slice --topology 4x4x8 --slices 2 \\
        --pathways --pathways-dir gs://BUCKET/pathways --head-node-pool POOL -- configs/palm_8b.py …
    python launch/gke.py state|logs|stop|delete NAME

The cluster needs JobSet 0.8 or newer; it and the namespace are kubectl's current ones, or --context and --namespace. --dry-run prints
the manifest within the command. `stop` saves and keeps the JobSet: the same `start` goes on. On TPUs JAX finds the other processes
by what GKE sets in each pod; the processes of GPU nodes are told (--hosts.coordinator, .count, .id).
"""

import argparse
import json
import sys

from jobset import check_names, gpu_jobset, tpu_jobset
from pathways import pathways_jobset
from steps import Step, carry_out, confirmed, split_at_dashes


def main() -> int:
    own, train = split_at_dashes(sys.argv[1:])
    parser = make_parser()
    flags = parser.parse_args(own)
    if flags.verb == "start" and not train:
        parser.error("start needs what to train after --, such as: -- configs/palm_8b.py --run-dir gs://BUCKET/RUN")
    if flags.verb != "start" and train:
        parser.error(f"{flags.verb} takes nothing after --, got {train}")
    if flags.verb == "delete" and not confirmed(
        f"Delete the JobSet {flags.name}? What it wrote to its volumes stays.", flags
    ):
        print("nothing deleted")
        return 1
    try:
        return carry_out(VERBS[flags.verb](flags, train), flags.dry_run)
    except ValueError as error:
        parser.error(str(error))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gke.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        add = verbs.add_parser(verb).add_argument
        add("name", metavar="NAME", help="the JobSet")
        add("--context", help="of kubectl")
        add("--namespace", default="default")
        add("--dry-run", action="store_true", help="print the commands, run nothing")
        if verb == "delete":
            add("--yes", action="store_true", help="do not ask")
        if verb == "start":
            add_start_flags(add)
    return parser


def add_start_flags(add) -> None:
    add("--image", required=True, help="a container image with paxlike installed and the configs in its working folder")
    add("--accelerator", required=True, help="the nodes' label, such as tpu-v5p-slice or nvidia-h100-80gb")
    add("--topology", help="chips of a TPU slice, such as 4x4x8")
    add("--slices", type=int, default=1, help="TPU slices, each a node pool; mesh.pod should be the same number")
    add("--nodes", type=int, help="GPU nodes")
    add("--per-host", type=int, help="chips of a TPU host (4), GPUs of a node (8)")
    add("--spot", action="store_true", help="on spot nodes")
    add("--max-restarts", type=int, default=10, help="after crashes; preemptions do not count (default %(default)s)")
    add("--volume", action="append", default=[], metavar="SOURCE=/PATH",
        help="gs://BUCKET (GCS FUSE), /FOLDER of the node, or the name of a PersistentVolumeClaim; may be given again")  # fmt: skip
    add("--env", action="append", default=[], type=variable, metavar="NAME=VALUE", help="may be given again")
    add("--service-account", help="of Kubernetes, with the rights to read and write the buckets")
    add("--pathways", action="store_true", help="one Python process drives the chips of all slices")
    add("--pathways-dir", help="gs:// folder for what Pathways keeps while it runs")
    add("--head-node-pool", help="CPU nodes for the Python process, 64 cores or more")
    add("--pathways-version", default="latest", help="tag of Google's images, to fit the jax of the image")


def variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (equals and name):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def start(flags: argparse.Namespace, train: list[str]) -> list[Step]:
    """Raises ValueError where flags are missing or do not fit each other."""
    if bool(flags.topology) == bool(flags.nodes):
        raise ValueError("give --topology (and --slices) for TPUs, or --nodes for GPUs")
    if flags.pathways and not (flags.topology and flags.pathways_dir and flags.head_node_pool):
        raise ValueError("--pathways needs --topology, --pathways-dir and --head-node-pool")
    if (flags.pathways_dir or flags.head_node_pool) and not flags.pathways:
        raise ValueError("--pathways-dir and --head-node-pool belong to --pathways")
    flags.per_host = flags.per_host or (4 if flags.topology else 8)
    make = pathways_jobset if flags.pathways else tpu_jobset if flags.topology else gpu_jobset
    manifest = make(flags, train)
    check_names(manifest)
    return [Step([*kubectl(flags), "apply", "--filename=-"], stdin=json.dumps(manifest, indent=2))]


def state(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    return [
        Step([*kubectl(flags), "get", "jobset", flags.name]),
        Step([*kubectl(flags), "get", "pods", of(flags), "--output=wide"]),
    ]


def logs(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    # kubectl follows five pods unless told otherwise.
    return [
        Step(
            [
                *kubectl(flags),
                "logs",
                of(flags),
                "--follow",
                "--prefix",
                "--all-containers",
                "--max-log-requests=100000",
            ]
        )
    ]


def stop(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    patch = json.dumps({"spec": {"suspend": True}})
    return [Step([*kubectl(flags), "patch", "jobset", flags.name, "--type=merge", f"--patch={patch}"])]


def delete(flags: argparse.Namespace, _: list[str]) -> list[Step]:
    return [Step([*kubectl(flags), "delete", "jobset", flags.name])]


def kubectl(flags: argparse.Namespace) -> list[str]:
    return ["kubectl", *([f"--context={flags.context}"] if flags.context else []), f"--namespace={flags.namespace}"]


def of(flags: argparse.Namespace) -> str:
    return f"--selector=jobset.sigs.k8s.io/jobset-name={flags.name}"


VERBS = {"start": start, "state": state, "logs": logs, "stop": stop, "delete": delete}

if __name__ == "__main__":
    sys.exit(main())
