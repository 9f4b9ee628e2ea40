"""The commands of the guides and the Python cells of docs/python.md run as they stand."""

import os
import re
import subprocess
import sys

import pytest
from programs import ROOT, environment

CHECKS = """
assert run.step == 20 and len(metrics["loss"]) == 20
assert logits.shape == (len(tokens), 2048)
assert len(texts) == 2 and first.total < 0
assert plan["flops"]["per_device"] > 0 and flops.hardware.total > flops.palm.total > 0
assert "palm_8b" in message
print("all cells ran")
"""
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
    """The cache directory of all guides, with the default corpus."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("guide", guides())
def test_the_guides_commands_run(guide, cache, tmp_path):
    blocks = [commands for _, commands in BLOCK.findall((ROOT / "docs" / guide).read_text())]
    (tmp_path / "bin").mkdir()
    for name, module in (("paxlike", "-m paxlike "), ("python", "")):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
        program.chmod(0o755)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "launch").symlink_to(ROOT / "launch")
    env = environment(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", PAXLIKE_CACHE=str(cache))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=tmp_path / "work", env=env, text=True, capture_output=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_cells_run(cache, tmp_path):
    cells = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.M | re.S)
    assert len(cells) >= 8
    (tmp_path / "notebook.py").write_text("\n".join(cells) + CHECKS)
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, text=True, capture_output=True, timeout=900,
        env=environment(PAXLIKE_CACHE=str(cache)),
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("all cells ran\n"), done.stderr[-3000:]
