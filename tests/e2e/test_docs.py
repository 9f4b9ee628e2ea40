"""The commands of the guides run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


# Small programs compile faster with less optimization.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
BLOCK = re.compile(r"^```sh(?: needs (\w+))?\n(.*?)^```", re.DOTALL | re.MULTILINE)


def guides() -> list:
    """The guides with commands, marked with the optional libraries that they need."""
    found = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        blocks = BLOCK.findall(path.read_text())
        needed = sorted({library for library, _ in blocks if library})
        marks = [pytest.mark.optional(*needed)] if needed else []
        if blocks:
            found.append(pytest.param(path.name, marks=marks))
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The compilation cache of all guides, several of which train the same model."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("guide", guides())
def test_the_guides_commands_run(guide, cache, tmp_path):
    blocks = [commands for _, commands in BLOCK.findall((ROOT / "docs" / guide).read_text())]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "paxlike").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m paxlike "$@"\n'
    )
    (tmp_path / "bin" / "paxlike").chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "launch").symlink_to(ROOT / "launch")
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": XLA_FLAGS,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PAXLIKE_CACHE": str(cache),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=tmp_path / "work", env=env, text=True, capture_output=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
