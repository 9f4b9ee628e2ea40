"""The environment of the programs that tests start."""

import os
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parents[1]
_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for a program on CPU devices.

    Programs import paxlike from this checkout, compile with little optimization, which is faster
    for small models, and share the compilation cache of the tests.
    """
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": _FLAGS,
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        **changes,
    }
