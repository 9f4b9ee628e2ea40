"""What the program sets in its environment before XLA reads it."""

import os

import pytest

from paxlike.parallel import runtime


@pytest.fixture
def bare(monkeypatch):
    for name in (
        "XLA_FLAGS",
        "PJRT_NPROC",
        "XLA_CLIENT_MEM_FRACTION",
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_cpu_gets_code_that_is_compiled_quickly_and_a_gpu_most_of_its_memory(bare):
    runtime.start()
    assert os.environ["XLA_FLAGS"] == "--xla_backend_optimization_level=1"
    assert os.environ["XLA_CLIENT_MEM_FRACTION"] == ".92"
    assert runtime._settings(0, False, {}) == {"XLA_CLIENT_MEM_FRACTION": ".92"}


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_what_the_user_has_set_stays(name):
    flags = "--xla_dump_to=here --xla_backend_optimization_level=3"
    assert runtime._settings(1, False, {name: ".5", "XLA_FLAGS": flags}) == {"XLA_FLAGS": flags}
    told = runtime._settings(1, True, {name: ".5", "XLA_FLAGS": "--xla_dump_to=here"})
    assert told == {
        "XLA_FLAGS": (
            "--xla_dump_to=here --xla_backend_optimization_level=1 --xla_gpu_deterministic_ops=true"
        )
    }


def test_devices_that_share_a_cpu_have_threads_to_wait_in(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert runtime._settings(8, False, {})["PJRT_NPROC"] == "16"
    assert "PJRT_NPROC" not in runtime._settings(8, False, {"PJRT_NPROC": "3"})
    assert not any("PJRT_NPROC" in runtime._settings(cpus, False, {}) for cpus in (0, 1))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert runtime._settings(8, False, {})["PJRT_NPROC"] == "64"


@pytest.mark.parametrize("chip", [True, False])
def test_a_platform_that_is_named_is_the_one(chip, monkeypatch):
    monkeypatch.setattr(runtime, "chip_here", lambda: chip)
    assert (
        runtime._on_cpu("cpu") and not runtime._on_cpu("proxy") and not runtime._on_cpu("tpu,cpu")
    )
    assert runtime._on_cpu(None) is runtime._on_cpu("") is not chip


def test_starting_twice_sets_it_once(bare):
    runtime.start()
    runtime.start()
    assert os.environ["XLA_FLAGS"].count("optimization_level") == 1
