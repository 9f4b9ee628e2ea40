"""The JobSet of Pathways on Cloud: one Python client, a resource manager and a proxy on a CPU node, a worker on every TPU host.

Ports, flags, images and variables are those of Google's own builder (`pathwaysutils.experimental.gke.jobset`, 0.1.13), with which the
tests compare them.
"""

import argparse

from jobset import EXCLUSIVE, NODE_POOL, from_pod, hosts, job, jobset, replicated, tpu_nodes, training_pod

IMAGES = "us-docker.pkg.dev/cloud-tpu-v2-images/pathways"
PROXY, MANAGER, WORKER = 29000, 29001, 29005
INSECURE = {"name": "IFRT_PROXY_USE_INSECURE_GRPC_CREDENTIALS", "value": "true"}
"""Client and proxy speak within one pod."""
COORDINATOR = "jobset.sigs.k8s.io/coordinator"
GENERATIONS = {
    "tpu-v4-podslice": "tpuv4", "tpu-v5-lite-podslice": "tpuv5e", "tpu-v5p-slice": "tpuv5", "tpu-v6e-slice": "tpuv6e",
    "tpu7x": "tpu7x",
}  # fmt: skip
SLICE_RESTARTS = 1_000_000
"""A worker that ends comes back without the client: Pathways, not Kubernetes, decides what that means for the run."""


def pathways_jobset(flags: argparse.Namespace, train: list[str]) -> dict:
    if flags.accelerator not in GENERATIONS:
        raise ValueError(f"Pathways knows the accelerators {', '.join(GENERATIONS)}; got {flags.accelerator!r}")
    jobs = [replicated("pathways-head", head(flags, train)), replicated("pathways-worker", worker(flags), flags.slices)]
    return jobset(
        flags, jobs, {},
        coordinator={"replicatedJob": "pathways-head"},
        startupPolicy={"startupPolicyOrder": "InOrder"},
        successPolicy={"operator": "All", "targetReplicatedJobs": ["pathways-head"]},
    )  # fmt: skip


def head(flags: argparse.Namespace, train: list[str]) -> dict:
    client = [
        {"name": "JAX_PLATFORMS", "value": "proxy"},
        {"name": "JAX_BACKEND_TARGET", "value": f"grpc://localhost:{PROXY}"},
        INSECURE,
        # The workers write and read checkpoints themselves: the arrays are too large for the client.
        {"name": "ENABLE_PATHWAYS_PERSISTENCE", "value": "1"},
    ]
    pod = training_pod(flags, train, {}, ["--hosts.count", "1"], client)
    # Beside the client: started before it and ended with it.
    pod["initContainers"] = [{**server, "restartPolicy": "Always"} for server in (manager(flags), proxy(flags))]
    pod["nodeSelector"] = {NODE_POOL: flags.head_node_pool}
    return job(pod, 1, {EXCLUSIVE: "kubernetes.io/hostname"})


def manager(flags: argparse.Namespace) -> dict:
    own = [
        from_pod("REPLICATED_JOB_NAME", "annotations", "jobset.sigs.k8s.io/replicatedjob-name"),
        from_pod("JOBSET_NAME", "annotations", "jobset.sigs.k8s.io/jobset-name"),
        from_pod("HOST_ADDRESS", "labels", COORDINATOR),
        {"name": "TPU_SKIP_MDS_QUERY", "value": "true"},
    ]
    arguments = [
        f"--server_port={MANAGER}",
        f"--gcs_scratch_location={flags.pathways_dir}",
        "--node_type=resource_manager",
        f"--instance_count={flags.slices}",
        f"--instance_type={GENERATIONS[flags.accelerator]}:{flags.topology}",
    ]
    return server("pathways-rm", "server", flags, arguments, own, [MANAGER, 29002], {"cpu": "8", "memory": "32G"})


def proxy(flags: argparse.Namespace) -> dict:
    own = [from_pod("PATHWAYS_HEAD", "labels", COORDINATOR), INSECURE]
    arguments = [
        f"--server_port={PROXY}",
        f"--resource_manager_address=$(PATHWAYS_HEAD):{MANAGER}",
        f"--gcs_scratch_location={flags.pathways_dir}",
    ]
    return server("pathways-proxy", "proxy_server", flags, arguments, own, [PROXY], {"cpu": "16", "memory": "100G"})


def worker(flags: argparse.Namespace) -> dict:
    own = [
        {"name": "TPU_MIN_LOG_LEVEL", "value": "0"},
        {"name": "TF_CPP_MIN_LOG_LEVEL", "value": "0"},
        {"name": "XCLOUD_ENVIRONMENT", "value": "GCP"},
        {"name": "MEGASCALE_GRPC_ENABLE_XOR_TRACER", "value": "false"},
        from_pod("MEGASCALE_NUM_SLICES", "labels", "jobset.sigs.k8s.io/replicatedjob-replicas"),
        from_pod("JOBSET_NAME", "annotations", "jobset.sigs.k8s.io/jobset-name"),
        from_pod("REPLICATED_JOB_NAME", "annotations", "jobset.sigs.k8s.io/replicatedjob-name"),
        from_pod("MEGASCALE_SLICE_ID", "labels", "jobset.sigs.k8s.io/job-index"),
        from_pod("PATHWAYS_HEAD", "labels", COORDINATOR),
        from_pod("MEGASCALE_COORDINATOR_ADDRESS", "labels", COORDINATOR),
    ]
    arguments = [
        f"--resource_manager_address=$(PATHWAYS_HEAD):{MANAGER}",
        f"--server_port={WORKER}",
        f"--gcs_scratch_location={flags.pathways_dir}",
    ]
    ports, devices = [WORKER, 29006, 8471, 8080], {"google.com/tpu": str(flags.per_host)}
    container = server("pathways-worker", "server", flags, arguments, own, ports, devices)
    container["volumeMounts"] = [{"name": "shared-tmp", "mountPath": "/tmp"}]
    pod = {
        **tpu_nodes(flags), "containers": [container], "restartPolicy": "OnFailure",
        "volumes": [{"name": "shared-tmp", "hostPath": {"path": "/tmp", "type": "DirectoryOrCreate"}}],
    }  # fmt: skip
    made = job(pod, hosts(flags), {EXCLUSIVE: NODE_POOL})
    # Kubernetes allows a failure policy only to pods that it never restarts.
    del made["spec"]["podFailurePolicy"]
    made["spec"]["backoffLimit"] = hosts(flags) * SLICE_RESTARTS
    return made


def server(
    name: str,
    image: str,
    flags: argparse.Namespace,
    arguments: list[str],
    variables: list[dict],
    ports: list[int],
    limits: dict,
) -> dict:
    return {
        "name": name, "image": f"{IMAGES}/{image}:{flags.pathways_version}", "imagePullPolicy": "Always", "args": arguments,
        "env": variables, "ports": [{"containerPort": port, "protocol": "TCP"} for port in ports],
        "resources": {"limits": limits},
    }  # fmt: skip
