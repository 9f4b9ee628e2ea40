"""Eight CPU devices for every test, settled before anything asks JAX for devices; compiled programs shared between tests."""

import atexit
import shutil
import tempfile

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

_cache = tempfile.mkdtemp(prefix="paxlike-tests-xla-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", _cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
