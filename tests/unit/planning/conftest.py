import jax
import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache folder of each test's own; JAX's compilation cache as it was."""
    monkeypatch.setenv("PAXLIKE_CACHE", str(tmp_path))
    enabled = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", enabled)
