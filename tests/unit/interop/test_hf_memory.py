"""A conversion to Hugging Face holds a layer or two at a time: measured on a model of 40 layers."""

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
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024
small, large, out = map(Path, sys.argv[1:])
to_hf(small, out / "small-out")  # libraries and compiled programs
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is held now
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
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "small", tmp_path / "large", tmp_path],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    more = int(done.stdout)
    model = parameter_count(config.model) * 4
    print(f"{more:,} bytes more than a small model, {model:,} in the model")
    assert model > 200e6 and more < 8 * model / 40, f"{more:,} bytes more, the model has {model:,}"
