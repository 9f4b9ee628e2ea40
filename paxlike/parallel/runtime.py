"""The platform's settings: which devices, which processes belong together, how strict, where compiled programs are kept.

The only file that starts and ends `jax.distributed`.
"""

import itertools
import os
from collections.abc import Mapping

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

from paxlike.config import Hosts, UserError
from paxlike.parallel.cache import cache_root
from paxlike.parallel.compilers import chip_here, only_compilers
from paxlike.parallel.rendezvous import gather

HEARTBEAT_SECONDS = 20
"""A process that is not heard of for so long is taken for dead, and JAX ends the others. Heartbeats come from a thread of the runtime,
which nothing that Python does holds up."""
SHUTDOWN_SECONDS = 20
"""How long a process that has finished waits for the others to finish."""
GPU_MEMORY = ".92"
"""Share of a GPU's memory that JAX takes at once, unless the environment says another: by itself it takes 0.75. The CUDA context, NCCL's
buffers and the libraries' workspaces lie in the rest. The planner counts on it."""
CPU_CODE = "--xla_backend_optimization_level=1"
"""How much LLVM optimizes what XLA writes for a CPU, unless XLA_FLAGS says another level. XLA's own is 3: it takes longer to compile, and
steps and tokens are no faster, because nearly all of their time goes into a library's matmuls (docs/performance.md)."""
CPU_THREADS = 2
"""Threads in XLA's pool for each of several devices that share a CPU. It has one by itself; devices that wait in a collective can then
hold all of them while another, which they wait for, finds none: on a busy machine such programs stood still, and XLA ended them."""
GATHER_SECONDS = 300
"""How long processes wait for each other to start."""


def start(fake_devices: int | None = None, hosts: Hosts | None = None, deterministic: bool = False) -> None:
    """Settles platform settings; must run before anything asks JAX for devices.

    `fake_devices` makes that many CPU devices out of this machine's one, so that any mesh can be tried anywhere. `hosts` (None: this
    process is alone) says which processes work together. `deterministic` asks a GPU's compiler for programs whose sums have one
    order; on a CPU and a TPU they have anyhow. Raises UserError where the processes cannot be found or reached.
    """
    if "proxy" in (jax.config.jax_platforms or ""):
        _start_pathways()
    if fake_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", fake_devices)
    elif not jax.config.jax_platforms and only_compilers():
        jax.config.update("jax_platforms", "cpu")
    platforms = jax.config.jax_platforms
    on_cpu = platforms == "cpu" if platforms else not chip_here()
    os.environ |= _settings(jax.config.jax_num_cpu_devices if on_cpu else 0, deterministic, os.environ)
    # Arrays of different rank that broadcast against each other are nearly always a mistake in a model.
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    if hosts is not None:
        _join(hosts)


def _settings(cpus: int, deterministic: bool, given: Mapping[str, str]) -> dict[str, str]:
    """What is set in the environment, where XLA reads it when the first device is asked for; what is given there already stays.

    cpus: CPU devices that the program will run on; 0 where it is accelerators.
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
    """Waits for the other processes to finish, too, and leaves them."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def client():
    """The coordination service as this process sees it (key-value store, barriers); None where the process is alone."""
    return distributed.global_state.client if distributed.global_state.num_processes > 1 else None


_asked = itertools.count()


def stop_agreed() -> bool:
    """Whether a process of the job got SIGTERM and all have agreed to stop now. Every process asks equally often."""
    # JAX wants a number that only rises; a run's step goes back when it is rewound.
    return client() is not None and multihost_utils.reached_preemption_sync_point(next(_asked))


def _join(hosts: Hosts) -> None:
    given = {}
    if hosts.coordinator:
        given = {"coordinator_address": hosts.coordinator, "num_processes": hosts.count, "process_id": hosts.id,
                 "coordinator_bind_address": hosts.coordinator, "cluster_detection_method": "deactivate"}  # fmt: skip
    elif hosts.count == 1 or any(os.environ.get(name) == "1" for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")):
        return
    # For processes on CPUs; accelerators have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if given:
        gather(hosts, GATHER_SECONDS)
    try:
        jax.distributed.initialize(
            **given, initialization_timeout=GATHER_SECONDS, heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )  # fmt: skip
    except ValueError as error:
        # What JAX says where it finds no cluster: this process is alone.
        if given or not any(words in str(error) for words in ("should be defined", "must be defined")):
            raise UserError(f"the processes of the job cannot be joined: {error}") from error
    except RuntimeError as error:
        raise UserError(
            f"the processes of the job cannot be found: {error}. Tell them with --hosts.coordinator, --hosts.count and "
            "--hosts.id, or --hosts.count 1 to run alone."
        ) from error


def _start_pathways() -> None:
    """Pathways on Cloud (JAX_PLATFORMS=proxy): this process alone drives the devices of all hosts, through JAX_BACKEND_TARGET."""
    try:
        import pathwaysutils
    except ImportError:
        raise UserError("JAX_PLATFORMS is proxy: Pathways needs pathwaysutils, `pip install '.[pathways]'`.") from None
    pathwaysutils.initialize()
