"""The platform's settings: which devices, how strict, where compiled programs are kept."""

import importlib.util
import os
from pathlib import Path

import jax


def start(fake_devices: int | None = None) -> None:
    """Settles platform settings; must run before anything asks JAX for devices.

    `fake_devices` makes that many CPU devices out of this machine's one, so that any mesh can be tried anywhere.
    """
    if fake_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", fake_devices)
    elif not jax.config.jax_platforms and _only_compilers():
        jax.config.update("jax_platforms", "cpu")
    # Arrays of different rank that broadcast against each other are nearly always a mistake in a model.
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def cache_root() -> Path:
    """The folder of all that can be made again: $PAXLIKE_CACHE, or .cache/paxlike of the home folder."""
    return Path(os.environ.get("PAXLIKE_CACHE") or Path.home() / ".cache" / "paxlike")


def _only_compilers() -> bool:
    """Whether libtpu or the CUDA plugin is installed to compile for chips that are not here: JAX would look for some, and complain at
    length."""
    here = any(any(Path("/dev").glob(kind)) for kind in ("accel*", "vfio/*", "nvidia*", "dxg", "kfd"))
    names = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
    return not here and any(importlib.util.find_spec(name) for name in names)
