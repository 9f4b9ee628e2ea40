"""The commands of the guides run as they stand."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


BLOCK = re.compile(r"^```sh(?: needs (\w+))?\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "guide", sorted(path.name for path in (ROOT / "docs").glob("*.md") if BLOCK.search(path.read_text()))
)
def test_the_guides_commands_run(guide, tmp_path):
    found = BLOCK.findall((ROOT / "docs" / guide).read_text())
    for needed in {needed for needed, _ in found if needed}:
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed (extra {needed})")
    blocks = [commands for _, commands in found]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "paxlike").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m paxlike "$@"\n')
    (tmp_path / "bin" / "paxlike").chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "launch").symlink_to(ROOT / "launch")
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PAXLIKE_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=tmp_path / "work", env=env, text=True, capture_output=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
