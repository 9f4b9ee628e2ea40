"""JobSet manifests (jobset.x-k8s.io/v1alpha2): a run on TPU slices or GPU nodes, or one client that drives all slices by Pathways.

A JobSet holds Jobs, a Job holds pods: a TPU slice is a Job, each of its hosts a pod, and all GPU nodes are one Job. When a pod fails,
the whole JobSet starts again from the newest checkpoint: at once and as often as needed after an eviction or a preemption, up to
`max_restarts` times after a crash.
"""

import argparse
import math
import re

from steps import PREEMPTED

COORDINATOR_PORT = 8482
EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"
NODE_POOL = "cloud.google.com/gke-nodepool"
SPOT = "cloud.google.com/gke-spot"
SAVING_SECONDS = 300
"""Between SIGTERM and SIGKILL, for a last checkpoint; a spot node gives less."""


def tpu_jobset(flags: argparse.Namespace, train: list[str]) -> dict:
    """One Job a slice, each on a node pool of its own. GKE tells JAX all it needs (TPU_WORKER_ID, MEGASCALE_SLICE_ID, …)."""
    pod = training_pod(flags, train, {"google.com/tpu": str(flags.per_host)})
    # libtpu within the slice, megascale between slices.
    pod["containers"][0]["ports"] = [{"containerPort": port} for port in (8471, 8080, COORDINATOR_PORT)]
    pod |= tpu_nodes(flags)
    if flags.slices > 1:
        # The network between slices is as fast as the hosts' own only without the pods' overlay.
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return jobset(flags, [replicated("slice", job(pod, hosts(flags)), flags.slices)], {EXCLUSIVE: NODE_POOL})


def gpu_jobset(flags: argparse.Namespace, train: list[str]) -> dict:
    """One process a node. JAX could find its place by the cluster's API, with a package and rights for it; it is told instead."""
    first = f"{flags.name}-node-0-0.{flags.name}:{COORDINATOR_PORT}"
    place = ["--hosts.coordinator", first, "--hosts.count", str(flags.nodes), "--hosts.id", "$(NODE_INDEX)"]
    index = from_pod("NODE_INDEX", "annotations", "batch.kubernetes.io/job-completion-index")
    pod = training_pod(flags, train, {"nvidia.com/gpu": str(flags.per_host)}, place, [index])
    pod |= nodes(flags, {"cloud.google.com/gke-accelerator": flags.accelerator})
    # NCCL passes data between the GPUs of a node through shared memory; a container's default is 64 MB.
    pod["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    pod["containers"][0]["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    return jobset(flags, [replicated("node", job(pod, flags.nodes))], {})


def jobset(flags: argparse.Namespace, jobs: list[dict], annotations: dict[str, str], **more: object) -> dict:
    preempted = {
        "name": "preempted", "action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"],
    }  # fmt: skip
    spec = {
        # Written out, so that starting again what was stopped (suspended) resumes it.
        "suspend": False,
        # Old pods are gone before new ones come: a coordinator's name must not lead to the old one.
        "failurePolicy": {
            "maxRestarts": flags.max_restarts,
            "restartStrategy": "BlockingRecreate",
            "rules": [preempted],
        },
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        **more,
        "replicatedJobs": jobs,
    }
    metadata = {"name": flags.name, "namespace": flags.namespace, "annotations": annotations}
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}


def replicated(name: str, template: dict, replicas: int = 1) -> dict:
    return {"name": name, "replicas": replicas, "template": template}


def job(pod: dict, pods: int, annotations: dict[str, str] | None = None) -> dict:
    """A Job of `pods` pods whose first failed pod ends it, with the reason PodFailurePolicy where no program is to blame."""
    not_to_blame = [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [PREEMPTED]}},
    ]
    metadata = {"annotations": dict(annotations or {})}
    if any("csi" in volume for volume in pod["volumes"]):
        # GKE then puts GCS FUSE beside the container.
        metadata["annotations"]["gke-gcsfuse/volumes"] = "true"
    spec = {
        "parallelism": pods, "completions": pods, "completionMode": "Indexed", "backoffLimit": 0,
        "podFailurePolicy": {"rules": not_to_blame}, "template": {"metadata": metadata, "spec": pod},
    }  # fmt: skip
    return {"metadata": {"annotations": dict(annotations or {})}, "spec": spec}


def training_pod(
    flags: argparse.Namespace,
    train: list[str],
    devices: dict[str, str],
    place: list[str] = (),
    variables: list[dict] = (),
) -> dict:
    """A pod that runs `paxlike train`, then `train` to the letter, then `place`. No shell comes between, so nothing is quoted."""
    given = [{"name": name, "value": literal(value)} for name, value in flags.env]
    pairs = [volume(number, text) for number, text in enumerate(flags.volume)]
    container = {
        "name": "paxlike", "image": flags.image, "command": ["paxlike", "train"], "args": [*map(literal, train), *place],
        "env": [*variables, *given], "volumeMounts": [mount for _, mount in pairs], "resources": {"limits": devices},
    }  # fmt: skip
    pod = {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": SAVING_SECONDS,
        "containers": [container], "volumes": [source for source, _ in pairs],
    }  # fmt: skip
    if flags.service_account:
        pod["serviceAccountName"] = flags.service_account
    return pod


def tpu_nodes(flags: argparse.Namespace) -> dict:
    kind = {
        "cloud.google.com/gke-tpu-accelerator": flags.accelerator,
        "cloud.google.com/gke-tpu-topology": flags.topology,
    }
    return nodes(flags, kind)


def nodes(flags: argparse.Namespace, labels: dict[str, str]) -> dict:
    """The part of a pod that says on which nodes it may run."""
    if not flags.spot:
        return {"nodeSelector": labels}
    spot = {"key": SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    return {"nodeSelector": {**labels, SPOT: "true"}, "tolerations": [spot]}


def literal(text: str) -> str:
    """Kubernetes puts variables in for $(NAME) in arguments and values; $$ stands for a plain $."""
    return text.replace("$", "$$")


def from_pod(variable: str, kind: str, key: str) -> dict:
    return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.{kind}['{key}']"}}}


def volume(number: int, text: str) -> tuple[dict, dict]:
    """(volume, mount) of SOURCE=/PATH: gs://BUCKET through GCS FUSE, /FOLDER of the node, else a PersistentVolumeClaim."""
    source, _, path = text.rpartition("=")
    if not source or not path.startswith("/"):
        raise ValueError(
            f"a volume is SOURCE=/PATH with gs://BUCKET, /FOLDER or the name of a claim as SOURCE, got {text!r}"
        )
    name = f"volume-{number}"
    if source.startswith("gs://"):
        bucket = {
            "driver": "gcsfuse.csi.storage.gke.io",
            "volumeAttributes": {"bucketName": source.removeprefix("gs://")},
        }
        return {"name": name, "csi": bucket}, {"name": name, "mountPath": path}
    if source.startswith("/"):
        return {"name": name, "hostPath": {"path": source}}, {"name": name, "mountPath": path}
    return {"name": name, "persistentVolumeClaim": {"claimName": source}}, {"name": name, "mountPath": path}


def hosts(flags: argparse.Namespace) -> int:
    """Hosts of a slice: the chips of its topology over those of a host."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", flags.topology):
        raise ValueError(f"a topology is chips by chips, such as 4x4x8 or 16x16; got {flags.topology!r}")
    chips = math.prod(int(side) for side in flags.topology.split("x"))
    if chips % flags.per_host:
        raise ValueError(f"the {chips} chips of topology {flags.topology} do not make whole hosts of {flags.per_host}")
    return chips // flags.per_host


def check_names(manifest: dict) -> None:
    """Raises ValueError where the name of a pod, which is its host name, would be none."""
    name = manifest["metadata"]["name"]
    for each in manifest["spec"]["replicatedJobs"]:
        pods = each["template"]["spec"]["parallelism"]
        longest = f"{name}-{each['name']}-{each['replicas'] - 1}-{pods - 1}"
        if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(longest) > 63:
            raise ValueError(
                f"{name!r} cannot name this JobSet: lower-case letters, digits and dashes, beginning with a letter, and short "
                f"enough for pods such as {longest!r} ({len(longest)} characters, 63 at most)"
            )
