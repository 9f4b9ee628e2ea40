"""The table of compiler options: who gets which, and that a user's own flags win."""

import dataclasses
import shlex

import jax
import pytest

from paxlike.accounting.hardware import CHIPS
from paxlike.config import load
from paxlike.planning.cache import _key
from paxlike.planning.compile import lower
from paxlike.planning.make_plan import prepare
from paxlike.training.compiler_options import (
    OPTIONS,
    as_environment,
    compile_step,
    compiler_options,
    switches,
    user_flags,
)

SPARSE_CORE = "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter"


@pytest.fixture(autouse=True)
def no_flags_of_the_user(monkeypatch):
    for variable in ("LIBTPU_INIT_ARGS", "XLA_FLAGS"):
        monkeypatch.delenv(variable, raising=False)


def test_every_option_is_of_known_chips_and_has_a_reason():
    names = {chip.name for chip in CHIPS}
    assert all(set(option.chips) <= names and option.reason for option in OPTIONS)
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)


def test_a_chip_gets_its_own_options():
    assert SPARSE_CORE in compiler_options("TPU v5p") and SPARSE_CORE in compiler_options("TPU7x")
    assert SPARSE_CORE not in compiler_options("TPU v4") and compiler_options("TPU v4")
    assert all(name.startswith("xla_gpu") for name in compiler_options("NVIDIA H200"))
    assert compiler_options("cpu") == compiler_options("a chip of tomorrow") == {}


@pytest.mark.parametrize("variable", ["LIBTPU_INIT_ARGS", "XLA_FLAGS"])
def test_the_users_flags_win(monkeypatch, variable):
    monkeypatch.setenv(variable, f"--xla_other=1 --{SPARSE_CORE}=false")
    found = compiler_options("TPU v6 lite")
    assert SPARSE_CORE not in found and "xla_enable_async_all_gather" in found


def test_switches_turn_off_options_of_their_chips(monkeypatch):
    for kind in ("TPU v4", "TPU v5p", "NVIDIA H200"):
        given = compiler_options(kind)
        assert switches(kind)
        for switch in switches(kind):
            assert all(given[name] != value for name, value in switch.off.items())
    assert switches("cpu") == []
    names = [switch.name for switch in switches("TPU v5p")]
    assert names == ["collective fusion", "SparseCore offload"]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--{SPARSE_CORE}=false")
    assert [switch.name for switch in switches("TPU v5p")] == ["collective fusion"]


def test_options_are_read_back_from_the_environment(monkeypatch):
    for kind, variable in (("TPU v5p", "LIBTPU_INIT_ARGS"), ("NVIDIA H200", "XLA_FLAGS")):
        off = switches(kind)[-1].off
        (word,) = shlex.split(as_environment(off))
        name, _, value = word.partition("=")
        assert name == variable
        monkeypatch.setenv(name, value)
        assert user_flags() == {name: str(value).lower() for name, value in off.items()}
        monkeypatch.delenv(name)
    assert as_environment({}) == ""


def test_plans_with_other_options_are_other_plans(monkeypatch):
    config, made = prepare(load("tiny"), "v4:2x2x2", None)
    lowered = lower(config, made)
    before = _key(lowered)
    monkeypatch.setenv("XLA_FLAGS", "--xla_tpu_rwb_fusion=false")
    assert _key(lowered) != before
    monkeypatch.delenv("XLA_FLAGS")
    fusion = switches("TPU v4")[0].off
    assert _key(dataclasses.replace(lowered, options=fusion)) != before
    jax.clear_caches()


def test_the_step_is_compiled_with_the_options_that_the_compiler_has(monkeypatch):
    asked = []

    class Lowered:
        def compile(self, compiler_options):
            asked.append(dict(compiler_options or {}))
            if "xla_enable_async_all_gather" in asked[-1]:
                raise jax.errors.JaxRuntimeError(
                    "INVALID_ARGUMENT: No such compile option: 'xla_enable_async_all_gather'"
                )
            return "compiled"

    warnings = []
    assert compile_step(Lowered(), "TPU v4", warnings.append) == "compiled"
    first, second = asked
    assert first == compiler_options("TPU v4")
    assert set(first) - set(second) == {"xla_enable_async_all_gather"}
    (warning,) = warnings
    assert "no option xla_enable_async_all_gather" in warning


def test_other_errors_of_the_compiler_are_raised(monkeypatch):
    """Also the message of the real compiler, for an option that is not one of ours."""
    config, made = prepare(load("tiny"), "cpu:2", None)
    stage = lower(config, made).stage
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_no_such'"):
        stage.compile(compiler_options={"xla_no_such": True})
    monkeypatch.setattr(
        "paxlike.training.compiler_options.compiler_options", lambda kind: {"xla_no_such": True}
    )
    warnings = []
    compile_step(stage, "cpu", warnings.append)
    assert len(warnings) == 1

    class Full:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large")

    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        compile_step(Full(), "cpu", warnings.append)
