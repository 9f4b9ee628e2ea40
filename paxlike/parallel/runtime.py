"""The platform's settings: which devices, how strict, where compiled programs are kept."""

import importlib.util
import os
from pathlib import Path

import jax

from paxlike.config import UserError


def start(fake_devices: int | None = None) -> None:
    """Settles platform settings; must run before anything asks JAX for devices.

    `fake_devices` makes that many CPU devices out of this machine's one, so that any mesh can be tried anywhere.
    """
    if "proxy" in (jax.config.jax_platforms or ""):
        _start_pathways()
    if fake_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", fake_devices)
    elif not jax.config.jax_platforms and _only_a_compiler():
        jax.config.update("jax_platforms", "cpu")
    # Arrays of different rank that broadcast against each other are nearly always a mistake in a model.
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _start_pathways() -> None:
    """Pathways on Cloud (JAX_PLATFORMS=proxy): this process alone drives the devices of all hosts, through JAX_BACKEND_TARGET."""
    try:
        import pathwaysutils
    except ImportError:
        raise UserError("JAX_PLATFORMS is proxy: Pathways needs pathwaysutils, `pip install '.[pathways]'`.") from None
    pathwaysutils.initialize()


def cache_root() -> Path:
    """The folder of all that can be made again: $PAXLIKE_CACHE, or .cache/paxlike of the home folder."""
    return Path(os.environ.get("PAXLIKE_CACHE") or Path.home() / ".cache" / "paxlike")


def _only_a_compiler() -> bool:
    """Whether libtpu is installed to compile for TPUs, and none is here: JAX would look for one, and complain at length."""
    here = any(Path("/dev").glob("accel*")) or any(Path("/dev").glob("vfio/*"))
    cuda = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return importlib.util.find_spec("libtpu") is not None and not here and not cuda
