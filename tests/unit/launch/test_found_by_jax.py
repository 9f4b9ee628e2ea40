"""What the launchers leave to JAX: with the variables that Slurm and GKE set, it finds each process's place. Its classes are not public."""

import pytest
from jax._src.clusters import ClusterEnv, GkeTpuCluster

from paxlike.config import Hosts

from .test_gke import GPU, TPU, expanded, manifest, pod

SLURM = {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "gpu[03-06]", "SLURM_STEP_NUM_NODES": "4"}


@pytest.mark.parametrize(
    "tasks, process, local, given, devices",
    [("32", "9", "1", None, [1]), ("4", "3", "0", list(range(8)), list(range(8))), ("4", "3", "0", None, [0])],
    ids=["a process a gpu", "a process a node", "a process a node, untold"],
)
def test_slurm(monkeypatch, tasks, process, local, given, devices):
    """The last case is why slurm.sh sets JAX_LOCAL_DEVICE_IDS: a process would use one GPU of the node."""
    for name, value in {**SLURM, "SLURM_NTASKS": tasks, "SLURM_PROCID": process, "SLURM_LOCALID": local}.items():
        monkeypatch.setenv(name, value)
    coordinator, *place = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, given, None, 300)
    assert coordinator.split(":")[0] == "gpu03"
    assert place == [int(tasks), int(process), devices]


def test_gke_slices(monkeypatch, desk):
    for name, value in {
        "TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "2", "MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert GkeTpuCluster.get_process_count() == 12 and GkeTpuCluster.get_process_id() == 6
    port = int(GkeTpuCluster.get_coordinator_address(5, None).removeprefix("localhost:"))
    assert {"containerPort": port} in pod(manifest(desk, *TPU), "slice")["containers"][0]["ports"]


def test_gpu_nodes_are_told_in_flags_that_train_takes(desk):
    flags = [
        expanded(word, {"NODE_INDEX": "15"}) for word in pod(manifest(desk, *GPU), "node")["containers"][0]["args"]
    ][1:]
    told = dict(zip(flags[::2], flags[1::2], strict=True))
    assert Hosts(told["--hosts.coordinator"], int(told["--hosts.count"]), int(told["--hosts.id"])).id == 15
