"""The Python cells of docs/python.md run in order, as in a notebook."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = """
assert run.step == 20 and len(metrics["loss"]) == 20
assert logits.shape == (len(tokens), 2048)
assert len(texts) == 2 and first.total < 0
assert plan["flops"]["per_device"] > 0 and flops.hardware.total > flops.palm.total > 0
assert "palm_8b" in message
print("all cells ran")
"""


@pytest.mark.slow
def test_the_cells_run(tmp_path):
    cells = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.M | re.S)
    assert len(cells) >= 8
    (tmp_path / "notebook.py").write_text("\n".join(cells) + CHECKS)
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, text=True, capture_output=True, timeout=900,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("all cells ran\n"), done.stderr[-3000:]
