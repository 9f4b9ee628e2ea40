"""A built wheel runs anywhere and contains the configs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_wheel_has_the_configs_and_runs(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("paxlike", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "wheels"]
    subprocess.run([*pip, str(source)], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").glob("paxlike-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "paxlike", "info", "tiny"], cwd=tmp_path / "empty", text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
    )  # fmt: skip
    assert done.returncode == 0 and "Parameters of tiny" in done.stdout, done.stderr
    shipped = {path.name for path in (ROOT / "configs").glob("*.py")}
    assert {path.name for path in (tmp_path / "installed/paxlike/configs").iterdir()} == shipped
    assert (tmp_path / "installed/paxlike/py.typed").exists()
