"""PaLM 8B's train step on a small TPU v4 slice: its collectives are frozen, its FLOPs match the
formula.
"""

import importlib.util

import jax
import pytest

from paxlike.accounting.executed_flops import executed_flops
from tools import update_goldens as goldens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu (684 MB, extra tpu) is not installed",
    ),
]


@pytest.fixture(scope="module")
def compiled():
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield goldens.compile_collectives()
    jax.config.update("jax_enable_compilation_cache", enabled)


def test_collectives(compiled):
    """Equal line by line with the compiler of the golden table; another compiler may not send more
    bytes per axis.
    """
    found, golden = goldens.render_collectives(compiled[1]), goldens.COLLECTIVES.read_text()
    if golden.splitlines()[0].endswith(f"libtpu {goldens.libtpu_version()}"):
        assert found.splitlines() == golden.splitlines(), (
            "if intended, run python -m tools.update_goldens and read the diff"
        )
    actual, expected = goldens.bytes_by_axis(found), goldens.bytes_by_axis(golden)
    assert actual.keys() == expected.keys(), (actual, expected)
    assert all(actual[axis] <= expected[axis] for axis in expected), (actual, expected)


def test_flops_equal_the_formula_exactly(compiled):
    """Splash attention's forward pass runs once: the policy saves what its backward needs."""
    config, facts = compiled
    tokens = config.train.batch_size * config.data.sequence_length
    assert (
        facts.flops * 16
        == executed_flops(config.model, config.data.sequence_length, "splash").total * tokens
    )
    assert facts.uncounted == []


def test_it_fits_and_saves_only_outputs_of_matmuls(compiled):
    config, facts = compiled
    c, tokens = config.model, config.train.batch_size * config.data.sequence_length // 4
    saved = (
        c.layers
        * tokens
        * 2
        * (c.d_model // 4 + 2 * c.heads * c.head_dim // 4 + 2 * c.head_dim + 2 * c.d_ff // 4)
    )
    assert saved < facts.memory["temporaries"] < 7 * 2**30
    # Two moments, and the step number.
    assert facts.memory["optimizer state"] == 2 * facts.memory["parameters"] + 4
