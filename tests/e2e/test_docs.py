"""The commands of the guides run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "guide", sorted(path.name for path in (ROOT / "docs").glob("*.md") if "```sh" in path.read_text())
)
def test_the_guides_commands_run(guide, tmp_path):
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / guide).read_text(), re.DOTALL)
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
