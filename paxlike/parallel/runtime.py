"""Platform settings: devices, the processes of a job, XLA options, the compilation cache.

The only file that starts and ends `jax.distributed`.
"""

import itertools
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax._src import distributed, xla_bridge
from jax.experimental import multihost_utils

from paxlike.config import Hosts, UserError
from paxlike.parallel.cache_dir import cache_root
from paxlike.parallel.compilers import chip_here, only_compilers
from paxlike.parallel.rendezvous import gather

HEARTBEAT_SECONDS = 20
"""JAX ends the job if a process sends no heartbeat for this long. A thread of the C++ runtime sends
heartbeats, so Python code cannot delay them.
"""
SHUTDOWN_SECONDS = 20
"""How long a finished process waits for the others to finish."""
GPU_MEMORY = ".92"
"""Fraction of GPU memory that JAX preallocates, unless the environment sets it; JAX's default is
0.75. The rest holds the CUDA context, NCCL buffers and library workspaces. The planner uses it too.
"""
CPU_CODE = "--xla_backend_optimization_level=1"
"""LLVM optimization level of CPU programs, unless XLA_FLAGS sets it. XLA's default, 3, compiles
more slowly and does not run faster, because library matmuls take nearly all of the time
(docs/performance.md).
"""
CPU_THREADS = 2
"""Threads in XLA's pool for each simulated CPU device. XLA's default is 1: devices that wait in a
collective can then occupy all threads while the device they wait for gets none. On a busy machine
such programs hung until XLA aborted them.
"""
GATHER_SECONDS = 300
"""How long processes wait for each other at startup."""


def start(
    fake_devices: int | None = None, hosts: Hosts | None = None, deterministic: bool = False
) -> None:
    """Sets up the platform. Must run before the first use of a JAX device.

    fake_devices: simulate this many CPU devices, to try a mesh on any machine. hosts: how the
    processes of a job find each other; None for a single process. deterministic: compile GPU
    programs whose sums have a fixed order; CPU and TPU programs always have one. Raises UserError
    if the processes cannot be found or reached.
    """
    if "proxy" in (jax.config.values["jax_platforms"] or ""):
        _start_pathways()
    if fake_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", fake_devices)
    elif not jax.config.values["jax_platforms"] and only_compilers():
        jax.config.update("jax_platforms", "cpu")
    cpus = (
        jax.config.values["jax_num_cpu_devices"]
        if _on_cpu(jax.config.values["jax_platforms"])
        else 0
    )
    os.environ |= _settings(cpus, deterministic, os.environ)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    if hosts is not None:
        _join(hosts)


def started() -> bool:
    """Whether JAX has initialized its devices, so that platform settings have no effect any
    more.
    """
    return xla_bridge.backends_are_initialized()


def _on_cpu(platforms: str | None) -> bool:
    """Whether the program runs on CPUs. platforms: jax.config.jax_platforms, empty if JAX
    chooses.
    """
    return platforms == "cpu" if platforms else not chip_here()


def _settings(cpus: int, deterministic: bool, given: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that XLA reads on the first use of a device. Variables that are already
    set keep their values.

    cpus: number of CPU devices that the program runs on; 0 on accelerators.
    """
    made = {}
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & given.keys():
        made["XLA_CLIENT_MEM_FRACTION"] = GPU_MEMORY
    flags = given.get("XLA_FLAGS", "").split()
    level = CPU_CODE.partition("=")[0]
    if cpus and not any(flag.startswith(level) for flag in flags):
        flags.append(CPU_CODE)
    if cpus > 1 and "PJRT_NPROC" not in given:
        made["PJRT_NPROC"] = str(max(os.cpu_count() or 1, CPU_THREADS * cpus))
    if deterministic:
        flags.append("--xla_gpu_deterministic_ops=true")
    return made | ({"XLA_FLAGS": " ".join(flags)} if flags else {})


def finish() -> None:
    """Waits for the other processes to finish, and disconnects from them."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def client():
    """The client of the coordination service (key-value store, barriers); None in a job of one
    process.
    """
    return distributed.global_state.client if distributed.global_state.num_processes > 1 else None


_calls = itertools.count()


def stop_agreed() -> bool:
    """Whether a process of the job got SIGTERM and all have agreed to stop now. Every process must
    call it equally often.
    """
    # JAX requires an increasing number; a run's step decreases when it is rewound.
    return client() is not None and multihost_utils.reached_preemption_sync_point(next(_calls))


def _join(hosts: Hosts) -> None:
    given: dict[str, Any] = {}
    if hosts.coordinator:
        given = {
            "coordinator_address": hosts.coordinator,
            "num_processes": hosts.count,
            "process_id": hosts.id,
            "coordinator_bind_address": hosts.coordinator,
            "cluster_detection_method": "deactivate",
        }
    elif hosts.count == 1 or any(
        os.environ.get(name) == "1" for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    ):
        return
    # Collectives between CPU processes; accelerators have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if given:
        gather(hosts, GATHER_SECONDS)
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=GATHER_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        # JAX raises this if it finds no cluster: the job has one process.
        if given or not any(
            words in str(error) for words in ("should be defined", "must be defined")
        ):
            raise UserError(f"the processes of the job cannot connect: {error}") from error
    except RuntimeError as error:
        raise UserError(
            f"the processes of the job cannot be found: {error}. Set --hosts.coordinator, "
            "--hosts.count and --hosts.id, or set --hosts.count 1 for a job of one process."
        ) from error


def _start_pathways() -> None:
    """Pathways on Cloud (JAX_PLATFORMS=proxy): this process alone controls the devices of all
    hosts, through JAX_BACKEND_TARGET.
    """
    try:
        import pathwaysutils
    except ImportError:
        raise UserError(
            "JAX_PLATFORMS is proxy: Pathways requires pathwaysutils, `pip install '.[pathways]'`."
        ) from None
    pathwaysutils.initialize()
