"""JobSet manifests (jobset.x-k8s.io/v1alpha2) for TPU slices and GPU nodes.

A JobSet contains Jobs, and a Job contains pods. Each TPU slice is one Job with one pod per host;
all GPU nodes together are one Job. When a pod fails, the whole JobSet restarts from the newest
checkpoint: without limit after an eviction or a preemption, up to `max_restarts` times after a
crash.
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
"""Time between SIGTERM and SIGKILL for a last checkpoint. Spot nodes allow less."""


def tpu_jobset(flags: argparse.Namespace, train: list[str]) -> dict:
    """One Job per slice, each on its own node pool.

    GKE sets the variables from which JAX finds the processes (TPU_WORKER_ID,
    MEGASCALE_SLICE_ID, ...).
    """
    pod = training_pod(flags, train, {"google.com/tpu": str(flags.per_host)})
    # Ports of libtpu (within the slice), megascale (between slices) and the coordinator.
    pod["containers"][0]["ports"] = [
        {"containerPort": port} for port in (8471, 8080, COORDINATOR_PORT)
    ]
    pod |= tpu_node_selector(flags)
    if flags.slices > 1:
        # The pods' overlay network is slower than the hosts' network between slices.
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    slices = replicated("slice", job(pod, hosts_per_slice(flags)), flags.slices)
    return jobset(flags, [slices], {EXCLUSIVE: NODE_POOL})


def gpu_jobset(flags: argparse.Namespace, train: list[str]) -> dict:
    """One process per node.

    JAX's own detection would need a package and permissions for the cluster's API, so the
    coordinator, the number of processes and the process index are passed as flags.
    """
    coordinator = f"{flags.name}-node-0-0.{flags.name}:{COORDINATOR_PORT}"
    host_flags = [
        "--hosts.coordinator",
        coordinator,
        "--hosts.count",
        str(flags.nodes),
        "--hosts.id",
        "$(NODE_INDEX)",
    ]
    index = pod_field("NODE_INDEX", "annotations", "batch.kubernetes.io/job-completion-index")
    pod = training_pod(flags, train, {"nvidia.com/gpu": str(flags.per_host)}, host_flags, [index])
    pod |= node_selector(flags, {"cloud.google.com/gke-accelerator": flags.accelerator})
    # NCCL passes data between the GPUs of a node through shared memory; a container gets 64 MB by
    # default.
    pod["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    pod["containers"][0]["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    return jobset(flags, [replicated("node", job(pod, flags.nodes))], {})


def jobset(
    flags: argparse.Namespace, jobs: list[dict], annotations: dict[str, str], **more: object
) -> dict:
    """The manifest of a JobSet. `more` adds fields to its spec."""
    ignore_preemptions = {
        "name": "preempted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    spec = {
        # Set explicitly, so that `start` resumes a JobSet that `stop` suspended.
        "suspend": False,
        # All old pods must be gone first: the coordinator's name must not resolve to an old pod.
        "failurePolicy": {
            "maxRestarts": flags.max_restarts,
            "restartStrategy": "BlockingRecreate",
            "rules": [ignore_preemptions],
        },
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        **more,
        "replicatedJobs": jobs,
    }
    metadata = {"name": flags.name, "namespace": flags.namespace, "annotations": annotations}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": spec,
    }


def replicated(name: str, template: dict, replicas: int = 1) -> dict:
    return {"name": name, "replicas": replicas, "template": template}


def job(pod: dict, pods: int, annotations: dict[str, str] | None = None) -> dict:
    """A Job of `pods` pods that fails when its first pod fails.

    The reason is PodFailurePolicy if the pod was evicted or preempted, not if it crashed.
    """
    preemption_rules = [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [PREEMPTED]}},
    ]
    metadata = {"annotations": dict(annotations or {})}
    if any("csi" in volume for volume in pod["volumes"]):
        # GKE adds its GCS FUSE sidecar to pods with this annotation.
        metadata["annotations"]["gke-gcsfuse/volumes"] = "true"
    spec = {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": preemption_rules},
        "template": {"metadata": metadata, "spec": pod},
    }
    return {"metadata": {"annotations": dict(annotations or {})}, "spec": spec}


def training_pod(
    flags: argparse.Namespace,
    train: list[str],
    devices: dict[str, str],
    host_flags: list[str] = (),
    variables: list[dict] = (),
) -> dict:
    """A pod that runs `paxlike train` with the arguments `train`, then `host_flags`.

    No shell is involved, so nothing is quoted. Kubernetes expands $(NAME) only in `host_flags`.
    """
    user_variables = [{"name": name, "value": escape(value)} for name, value in flags.env]
    volumes = [parse_volume(number, text) for number, text in enumerate(flags.volume)]
    container = {
        "name": "paxlike",
        "image": flags.image,
        "command": ["paxlike", "train"],
        "args": [*map(escape, train), *host_flags],
        "env": [*variables, *user_variables],
        "volumeMounts": [mount for _, mount in volumes],
        "resources": {"limits": devices},
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SAVING_SECONDS,
        "containers": [container],
        "volumes": [volume for volume, _ in volumes],
    }
    if flags.service_account:
        pod["serviceAccountName"] = flags.service_account
    return pod


def tpu_node_selector(flags: argparse.Namespace) -> dict:
    labels = {
        "cloud.google.com/gke-tpu-accelerator": flags.accelerator,
        "cloud.google.com/gke-tpu-topology": flags.topology,
    }
    return node_selector(flags, labels)


def node_selector(flags: argparse.Namespace, labels: dict[str, str]) -> dict:
    """The fields of a pod that select its nodes: these labels, and spot nodes with --spot."""
    if not flags.spot:
        return {"nodeSelector": labels}
    spot = {"key": SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    return {"nodeSelector": {**labels, SPOT: "true"}, "tolerations": [spot]}


def escape(text: str) -> str:
    """Kubernetes expands $(NAME) in arguments and values; $$ stands for a literal $."""
    return text.replace("$", "$$")


def pod_field(variable: str, kind: str, key: str) -> dict:
    """An environment variable that holds a label or an annotation (`kind`) of the pod."""
    return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.{kind}['{key}']"}}}


def parse_volume(number: int, text: str) -> tuple[dict, dict]:
    """(volume, mount) for SOURCE=/PATH.

    SOURCE is gs://BUCKET (GCS FUSE), /FOLDER of the node, or the name of a PersistentVolumeClaim.
    """
    source, _, path = text.rpartition("=")
    if not source or not path.startswith("/"):
        raise ValueError(
            f"--volume is {text!r}; it must be SOURCE=/PATH, where SOURCE is gs://BUCKET, /FOLDER "
            "or the name of a PersistentVolumeClaim"
        )
    name = f"volume-{number}"
    if source.startswith("gs://"):
        bucket = {"bucketName": source.removeprefix("gs://")}
        content = {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": bucket}}
    elif source.startswith("/"):
        content = {"hostPath": {"path": source}}
    else:
        content = {"persistentVolumeClaim": {"claimName": source}}
    return {"name": name, **content}, {"name": name, "mountPath": path}


def hosts_per_slice(flags: argparse.Namespace) -> int:
    """Chips of the topology, divided by chips per host. Raises ValueError if not whole."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", flags.topology):
        raise ValueError(
            f"--topology is {flags.topology!r}; it must be two or three sizes, such as 16x16 or "
            "4x4x8"
        )
    chips = math.prod(int(side) for side in flags.topology.split("x"))
    if chips % flags.per_host:
        raise ValueError(
            f"--topology {flags.topology} has {chips} chips, which is not a multiple of the "
            f"{flags.per_host} chips per host"
        )
    return chips // flags.per_host


def check_names(manifest: dict) -> None:
    """Raises ValueError if the JobSet's name is invalid or a pod's host name would be too long."""
    name = manifest["metadata"]["name"]
    for replicated_job in manifest["spec"]["replicatedJobs"]:
        replicas = replicated_job["replicas"]
        pods = replicated_job["template"]["spec"]["parallelism"]
        longest = f"{name}-{replicated_job['name']}-{replicas - 1}-{pods - 1}"
        if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(longest) > 63:
            raise ValueError(
                f"{name!r} is not a valid name for this JobSet; use lower-case letters, digits and "
                "dashes, start with a letter, do not end with a dash, and choose a name short "
                f"enough for pods such as {longest!r} ({len(longest)} characters, 63 at most)"
            )
