"""JAX detects the processes from the variables that Slurm and GKE set. Uses private JAX classes."""

import pytest
from jax._src.clusters import ClusterEnv, GkeTpuCluster

from paxlike.config import Hosts

from .test_gke import GPU, TPU, expanded, manifest, pod

SLURM = {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "gpu[03-06]", "SLURM_STEP_NUM_NODES": "4"}


@pytest.mark.parametrize(
    "tasks, process, local, requested, devices",
    [
        ("32", "9", "1", None, [1]),
        ("4", "3", "0", list(range(8)), list(range(8))),
        ("4", "3", "0", None, [0]),
    ],
    ids=["process per gpu", "process per node", "process per node, no device ids"],
)
def test_slurm(monkeypatch, tasks, process, local, requested, devices):
    """The last case shows why slurm.sh sets JAX_LOCAL_DEVICE_IDS: without it, JAX uses one GPU."""
    for name, value in {
        **SLURM,
        "SLURM_NTASKS": tasks,
        "SLURM_PROCID": process,
        "SLURM_LOCALID": local,
    }.items():
        monkeypatch.setenv(name, value)
    coordinator, *indices = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, requested, None, 300
    )
    assert coordinator.split(":")[0] == "gpu03"
    assert indices == [int(tasks), int(process), devices]


def test_gke_slices(monkeypatch, sandbox):
    for name, value in {
        "TPU_WORKER_HOSTNAMES": "a,b,c,d",
        "TPU_WORKER_ID": "2",
        "MEGASCALE_NUM_SLICES": "3",
        "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
    }.items():
        monkeypatch.setenv(name, value)
    assert GkeTpuCluster.get_process_count() == 12 and GkeTpuCluster.get_process_id() == 6
    port = int(GkeTpuCluster.get_coordinator_address(5, None).removeprefix("localhost:"))
    assert {"containerPort": port} in pod(manifest(sandbox, *TPU), "slice")["containers"][0][
        "ports"
    ]


def test_host_flags_of_gpu_nodes_are_valid(sandbox):
    flags = [
        expanded(word, {"NODE_INDEX": "15"})
        for word in pod(manifest(sandbox, *GPU), "node")["containers"][0]["args"]
    ][1:]
    values = dict(zip(flags[::2], flags[1::2], strict=True))
    hosts = Hosts(
        values["--hosts.coordinator"], int(values["--hosts.count"]), int(values["--hosts.id"])
    )
    assert hosts.id == 15
