"""How tests compile, and the environment of the programs that they start."""

import importlib.metadata
import os
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parents[1]
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""XLA flags that optimize machine code less: small programs compile 2 to 6 times as fast."""
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK_COMPILATION += (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for a program on CPU devices.

    Programs import paxlike from this checkout, compile quickly, and share the compilation cache of
    the tests.
    """
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": QUICK_COMPILATION,
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        **changes,
    }
