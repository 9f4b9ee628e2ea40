"""Test environment: eight CPU devices, a shared compilation cache, and optional libraries."""

import atexit
import importlib.util
import os
import shutil
import tempfile

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from programs import QUICK_COMPILATION

from paxlike.nn import numerics
from paxlike.parallel.runtime import CPU_THREADS
from paxlike.training import peak_flops

EXTRAS = {
    "lm_eval": "eval",
    "openai": "openai",
    "peft": "hf",
    "seqio": "seqio",
    "torch": "hf",
    "transformers": "hf",
    "wandb": "wandb",
    "xprof": "xprof",
}
"""Optional library -> the extra that installs it."""


def pytest_addoption(parser):
    parser.addoption(
        "--require-optional",
        action="store_true",
        help="fail tests marked optional if their libraries are missing, instead of skipping them",
    )


def pytest_configure(config):
    if _starts_workers(config):
        return  # Only the workers run tests; each configures JAX for itself.
    _configure_jax()


def _starts_workers(config) -> bool:
    return bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")


def pytest_runtest_setup(item):
    # JAX decides once per process whether to use its cache. Without a reset, a test that disables
    # the cache (as plans do) disables it for all later tests if it is the first to compile.
    compilation_cache.reset_cache()
    for marker in item.iter_markers("optional"):
        missing = [name for name in marker.args if importlib.util.find_spec(name) is None]
        if not missing:
            continue
        extras = ", ".join(sorted({EXTRAS[name] for name in missing}))
        message = f"{' and '.join(missing)} not installed (extra {extras})"
        if item.config.getoption("--require-optional"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)


@pytest.fixture(autouse=True, scope="module")
def environment_is_restored():
    """A command that a test runs in this process sets variables for XLA (`parallel/runtime.py`)."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def _configure_jax() -> None:
    """Sets up JAX before any test module can use a device."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # The same number of threads as in `parallel/runtime.py`, so that devices do not wait for each
    # other on a busy machine.
    os.environ.setdefault("PJRT_NPROC", str(CPU_THREADS * 8))

    cache = tempfile.mkdtemp(prefix="paxlike-tests-xla-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    _reduce_compile_time()

    # Every run measures a matmul for its MFU: 0.5 s at the real size.
    peak_flops.SIDE = 256

    # Test tolerances assume float32, even where this CPU computes fastest in another dtype. Tests
    # of bfloat16 request it explicitly.
    flags = numerics._cpu_flags
    numerics._cpu_flags = lambda: flags() - {"amx_bf16", "avx512_bf16"}


def _reduce_compile_time() -> None:
    """Reduces machine code optimization. The HLO is unchanged.

    XLA reads its flags once, when the first device is created; they are reset afterwards so that
    subprocesses do not inherit them.
    """
    given = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{given or ''} {QUICK_COMPILATION}"
    jax.devices()
    if given is None:
        del os.environ["XLA_FLAGS"]
    else:
        os.environ["XLA_FLAGS"] = given
