"""JobSet manifests for Pathways on Cloud.

The Python client, a resource manager and a proxy run on a CPU node; a worker runs on every TPU
host. Ports, flags, images and variables are those of Google's builder
(`pathwaysutils.experimental.gke.jobset`, version 0.1.13); the tests compare with it.
"""

import argparse

from jobset import (
    EXCLUSIVE,
    NODE_POOL,
    hosts_per_slice,
    job,
    jobset,
    pod_field,
    replicated,
    tpu_node_selector,
    training_pod,
)

IMAGES = "us-docker.pkg.dev/cloud-tpu-v2-images/pathways"
PROXY, MANAGER, WORKER = 29000, 29001, 29005
INSECURE = {"name": "IFRT_PROXY_USE_INSECURE_GRPC_CREDENTIALS", "value": "true"}
"""Client and proxy are in the same pod, so their connection needs no encryption."""
COORDINATOR = "jobset.sigs.k8s.io/coordinator"
GENERATIONS = {
    "tpu-v4-podslice": "tpuv4",
    "tpu-v5-lite-podslice": "tpuv5e",
    "tpu-v5p-slice": "tpuv5",
    "tpu-v6e-slice": "tpuv6e",
    "tpu7x": "tpu7x",
}
"""Names of TPU generations in Pathways, by GKE node label."""
HOST_RESTARTS = 1_000_000
"""Backoff limit per host. A worker restarts without the client; Pathways handles its failure."""


def pathways_jobset(flags: argparse.Namespace, train: list[str]) -> dict:
    if flags.accelerator not in GENERATIONS:
        raise ValueError(
            f"--accelerator is {flags.accelerator!r}; with --pathways it must be one of "
            f"{', '.join(GENERATIONS)}"
        )
    jobs = [
        replicated("pathways-head", head(flags, train)),
        replicated("pathways-worker", worker(flags), flags.slices),
    ]
    return jobset(
        flags,
        jobs,
        {},
        coordinator={"replicatedJob": "pathways-head"},
        startupPolicy={"startupPolicyOrder": "InOrder"},
        successPolicy={"operator": "All", "targetReplicatedJobs": ["pathways-head"]},
    )


def head(flags: argparse.Namespace, train: list[str]) -> dict:
    client = [
        {"name": "JAX_PLATFORMS", "value": "proxy"},
        {"name": "JAX_BACKEND_TARGET", "value": f"grpc://localhost:{PROXY}"},
        INSECURE,
        # Workers read and write checkpoints directly; the arrays do not fit the client.
        {"name": "ENABLE_PATHWAYS_PERSISTENCE", "value": "1"},
    ]
    pod = training_pod(flags, train, {}, ["--hosts.count", "1"], client)
    # Sidecars: Kubernetes starts them before the client and stops them after it.
    pod["initContainers"] = [
        {**server, "restartPolicy": "Always"} for server in (manager(flags), proxy(flags))
    ]
    pod["nodeSelector"] = {NODE_POOL: flags.head_node_pool}
    return job(pod, 1, {EXCLUSIVE: "kubernetes.io/hostname"})


def manager(flags: argparse.Namespace) -> dict:
    variables = [
        pod_field("REPLICATED_JOB_NAME", "annotations", "jobset.sigs.k8s.io/replicatedjob-name"),
        pod_field("JOBSET_NAME", "annotations", "jobset.sigs.k8s.io/jobset-name"),
        pod_field("HOST_ADDRESS", "labels", COORDINATOR),
        {"name": "TPU_SKIP_MDS_QUERY", "value": "true"},
    ]
    arguments = [
        f"--server_port={MANAGER}",
        f"--gcs_scratch_location={flags.pathways_dir}",
        "--node_type=resource_manager",
        f"--instance_count={flags.slices}",
        f"--instance_type={GENERATIONS[flags.accelerator]}:{flags.topology}",
    ]
    return server(
        "pathways-rm",
        "server",
        flags,
        arguments,
        variables,
        [MANAGER, 29002],
        {"cpu": "8", "memory": "32G"},
    )


def proxy(flags: argparse.Namespace) -> dict:
    variables = [pod_field("PATHWAYS_HEAD", "labels", COORDINATOR), INSECURE]
    arguments = [
        f"--server_port={PROXY}",
        f"--resource_manager_address=$(PATHWAYS_HEAD):{MANAGER}",
        f"--gcs_scratch_location={flags.pathways_dir}",
    ]
    return server(
        "pathways-proxy",
        "proxy_server",
        flags,
        arguments,
        variables,
        [PROXY],
        {"cpu": "16", "memory": "100G"},
    )


def worker(flags: argparse.Namespace) -> dict:
    variables = [
        {"name": "TPU_MIN_LOG_LEVEL", "value": "0"},
        {"name": "TF_CPP_MIN_LOG_LEVEL", "value": "0"},
        {"name": "XCLOUD_ENVIRONMENT", "value": "GCP"},
        {"name": "MEGASCALE_GRPC_ENABLE_XOR_TRACER", "value": "false"},
        pod_field("MEGASCALE_NUM_SLICES", "labels", "jobset.sigs.k8s.io/replicatedjob-replicas"),
        pod_field("JOBSET_NAME", "annotations", "jobset.sigs.k8s.io/jobset-name"),
        pod_field("REPLICATED_JOB_NAME", "annotations", "jobset.sigs.k8s.io/replicatedjob-name"),
        pod_field("MEGASCALE_SLICE_ID", "labels", "jobset.sigs.k8s.io/job-index"),
        pod_field("PATHWAYS_HEAD", "labels", COORDINATOR),
        pod_field("MEGASCALE_COORDINATOR_ADDRESS", "labels", COORDINATOR),
    ]
    arguments = [
        f"--resource_manager_address=$(PATHWAYS_HEAD):{MANAGER}",
        f"--server_port={WORKER}",
        f"--gcs_scratch_location={flags.pathways_dir}",
    ]
    ports, devices = [WORKER, 29006, 8471, 8080], {"google.com/tpu": str(flags.per_host)}
    container = server("pathways-worker", "server", flags, arguments, variables, ports, devices)
    container["volumeMounts"] = [{"name": "shared-tmp", "mountPath": "/tmp"}]
    pod = {
        **tpu_node_selector(flags),
        "containers": [container],
        "restartPolicy": "OnFailure",
        "volumes": [
            {"name": "shared-tmp", "hostPath": {"path": "/tmp", "type": "DirectoryOrCreate"}}
        ],
    }
    manifest = job(pod, hosts_per_slice(flags), {EXCLUSIVE: NODE_POOL})
    # Kubernetes allows a pod failure policy only with restartPolicy Never.
    del manifest["spec"]["podFailurePolicy"]
    manifest["spec"]["backoffLimit"] = hosts_per_slice(flags) * HOST_RESTARTS
    return manifest


def server(
    name: str,
    image: str,
    flags: argparse.Namespace,
    arguments: list[str],
    variables: list[dict],
    ports: list[int],
    limits: dict,
) -> dict:
    """A container that runs one of the Pathways servers."""
    return {
        "name": name,
        "image": f"{IMAGES}/{image}:{flags.pathways_version}",
        "imagePullPolicy": "Always",
        "args": arguments,
        "env": variables,
        "ports": [{"containerPort": port, "protocol": "TCP"} for port in ports],
        "resources": {"limits": limits},
    }
