"""What PaLM 8B's train step sends on a small TPU v4 slice is as it was, and it computes what the formula says."""

import importlib.util

import jax
import pytest

from paxlike.accounting.flops import executed_flops
from tools import update_goldens as goldens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu (684 MB, extra tpu) is not installed"
    ),
]


@pytest.fixture(scope="module")
def compiled():
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield goldens.compile_collectives()
    jax.config.update("jax_enable_compilation_cache", enabled)


def test_collectives(compiled):
    """Line for line by the compiler that made the golden table; another one may cut them otherwise, but sends no more."""
    found, golden = goldens.render_collectives(compiled[1]), goldens.COLLECTIVES.read_text()
    if golden.splitlines()[0].endswith(f"libtpu {goldens.compiler()}"):
        assert found.splitlines() == golden.splitlines(), (
            "if that is meant: python -m tools.update_goldens, and read the diff"
        )
    now, then = goldens.sent(found), goldens.sent(golden)
    assert now.keys() == then.keys() and all(now[axis] <= then[axis] for axis in then), (now, then)


def test_flops_are_the_formulas_to_the_last_one(compiled):
    """Splash attention runs forward once: the policy keeps what its backward kernels read."""
    config, facts = compiled
    tokens = config.train.batch_size * config.data.sequence_length
    assert facts.flops * 16 == executed_flops(config.model, config.data.sequence_length, "splash").total * tokens
    assert facts.uncounted == []


def test_it_fits_and_keeps_only_what_matmuls_made(compiled):
    config, facts = compiled
    c, tokens = config.model, config.train.batch_size * config.data.sequence_length // 4
    kept = c.layers * tokens * 2 * (c.d_model // 4 + 2 * c.heads * c.head_dim // 4 + 2 * c.head_dim + 2 * c.d_ff // 4)
    assert kept < facts.memory["temporaries"] < 7 * 2**30
    # Two moments, and the number of the step.
    assert facts.memory["optimizer state"] == 2 * facts.memory["parameters"] + 4
