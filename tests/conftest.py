"""Eight CPU devices for every test, settled before anything asks JAX for devices; compiled programs shared between tests."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

import jax

from paxlike.nn import weight
from paxlike.parallel.runtime import CPU_THREADS

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# As `parallel/runtime.py` has it, so that devices do not stand still on a busy machine.
os.environ.setdefault("PJRT_NPROC", str(CPU_THREADS * 8))

_cache = tempfile.mkdtemp(prefix="paxlike-tests-xla-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _compile_quickly() -> None:
    """Machine code is optimized less, which makes small programs compile 2 to 6 times as fast; the HLO is the same.

    XLA reads its flags once, with the first device, so that programs started by tests do not inherit them.
    """
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        flags += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    given = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{given or ''} {flags}"
    jax.devices()
    if given is None:
        del os.environ["XLA_FLAGS"]
    else:
        os.environ["XLA_FLAGS"] = given


_compile_quickly()

# Tolerances of tests are float32's, whatever this machine computes fastest in; tests of bfloat16 ask for it.
_flags = weight._cpu_flags
weight._cpu_flags = lambda: _flags() - {"amx_bf16", "avx512_bf16"}
