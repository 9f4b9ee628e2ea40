"""The console of a machine where the CUDA plugin is installed only to compile: clean, but nothing
real is lost.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paxlike.parallel import compilers

STUB = (
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    b"I0000 00:00:1795282675.946827   25385 cudart_stub.cc:31] Could not find cuda "
    b"drivers on your machine, GPU will not be used.\n"
)


@pytest.fixture
def speaking(monkeypatch):
    """speaking(bytes): what the libraries write to standard error while JAX is imported; more is
    said before and after.
    """

    def load(name):
        if name == "jax":
            os.write(2, STUB + b"E0000 a real fault\n")
            print("in Python", file=sys.stderr)
        else:
            raise ImportError  # no plugin

    monkeypatch.setattr(importlib, "import_module", load)


@pytest.mark.parametrize("gpu", [False, True])
def test_only_the_stubs_lines_are_left_out_and_only_without_a_gpu(
    speaking, monkeypatch, capfd, gpu
):
    monkeypatch.setattr(compilers, "only_compilers", lambda: not gpu)
    os.write(2, STUB)
    before = capfd.readouterr().err
    compilers.import_jax()
    os.write(2, b"after\n")
    err = capfd.readouterr().err
    assert (
        before.count("cudart") == 1 and ("cudart" in err) == gpu and ("InitializeLog" in err) == gpu
    )
    assert "E0000 a real fault\n" in err and "in Python\n" in err and err.endswith("after\n")


def test_what_was_said_before_a_failure_comes_out(monkeypatch, capfd):
    def fail(name):
        os.write(2, STUB + b"why\n")
        raise ImportError

    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.setattr(compilers, "only_compilers", lambda: True)
    with pytest.raises(ImportError):
        compilers.import_jax()
    assert capfd.readouterr().err == "why\n"


def test_a_process_without_standard_error_starts(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with compilers.silent():
        pass


@pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in compilers.PLUGINS)
    or not compilers.only_compilers(),
    reason="needs JAX's CUDA plugin (extra plan-gpu) on a machine without a GPU",
)
def test_the_console_is_clean_beside_the_real_plugin(tmp_path):
    """Nothing but the one error message, though JAX was imported and asked for devices."""
    root = Path(__file__).parents[3]
    (tmp_path / "model").write_bytes(b"no safetensors")
    asked = (
        "from paxlike.commands.flags import platform; platform().start(); import jax; assert "
        "jax.devices()"
    )
    for words, told in (
        (["-c", asked], ""),
        (["-m", "paxlike", "generate", "model", "a"], "paxlike: "),
    ):
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "JAX_PLATFORMS": "", "PYTHONPATH": str(root)},
        )  # fmt: skip
        assert done.returncode == 2 * bool(told) and done.stderr.startswith(told), done.stderr
        assert done.stderr.count("\n") == bool(told), done.stderr
