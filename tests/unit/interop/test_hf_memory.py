"""The peak memory of a conversion to Hugging Face is a few layers, measured with 40 layers."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import host_params
from interop_cases import case, make_run

from paxlike.accounting.parameters import parameter_count

ROOT = Path(__file__).resolve().parents[3]
MEASURE = """
import re, sys
from pathlib import Path
from paxlike.parallel import runtime
runtime.start(fake_devices=1)
from paxlike.interop.hf import to_hf
def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status).group(1)) * 1024
small, large, out = map(Path, sys.argv[1:])
to_hf(small, out / "small-out")  # loads libraries and compiles programs
Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current usage
before = peak()
to_hf(large, out / "large-out")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_peak_is_a_few_layers(tmp_path):
    shape = {"d_model": 320, "heads": 4, "head_dim": 64, "d_ff": 1280}
    config = case(layers=40, **shape)
    params = host_params(case(layers=1, **shape))
    params["blocks"] = jax.tree.map(lambda leaf: np.repeat(leaf, 40, axis=0), params["blocks"])
    make_run(tmp_path / "large", config, params=params)
    make_run(tmp_path / "small", case(**shape))
    process = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "small", tmp_path / "large", tmp_path],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    increase = int(process.stdout)
    model = parameter_count(config.model) * 4
    print(f"{increase:,} bytes more than a small model, {model:,} in the model")
    assert model > 200e6 and increase < 8 * model / 40, f"{increase:,} bytes for {model:,}"
