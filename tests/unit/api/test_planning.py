"""`paxlike.flops`, `paxlike.plan` and the names that `import paxlike` offers."""

import json
import subprocess
import sys

import pytest

import paxlike
from paxlike.config import Config, DataConfig, MeshConfig, ModelConfig, TrainConfig

SMALL = Config(
    name="small",
    model=ModelConfig(
        layers=2, d_model=64, heads=4, kv_heads=1, head_dim=16, d_ff=128, vocab_size=256
    ),
    data=DataConfig(sequence_length=64),
    train=TrainConfig(batch_size=8),
    mesh=MeshConfig(model=2),
)


def test_flops_of_palm_by_the_papers_formula():
    """6N + 12LHQT, PaLM appendix B, at the 8B model's published shape."""
    flops = paxlike.flops("palm_8b")
    L, H, Q, T = 32, 16, 256, 2048
    assert flops.palm.total == 6 * flops.parameters + 12 * L * H * Q * T
    assert flops.parameters == pytest.approx(8.63e9, rel=1e-3)
    assert flops.forward.total < flops.palm.total <= flops.hardware.total


def test_a_plan_is_the_json_of_the_command(tmp_path):
    config = tmp_path / "small.py"
    config.write_text(
        "from paxlike.config import *\n\n\ndef config():\n    return " + repr(SMALL) + "\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "paxlike", "plan", str(config), "--topology", "cpu:4", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    printed, plan = json.loads(done.stdout), paxlike.plan(config, "cpu:4")
    for part in ("mesh", "memory", "flops", "collectives", "fits"):
        assert json.loads(json.dumps(plan[part])) == printed[part], part


def test_more_cpu_devices_than_jax_has_started_with():
    with pytest.raises(paxlike.UserError, match="needs 64 CPU devices, but JAX already uses 8"):
        paxlike.plan(SMALL, "cpu:64")


def test_importing_paxlike_imports_no_jax():
    code = "import paxlike, sys; paxlike.flops('palm_8b'); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_public_name_exists():
    assert all(getattr(paxlike, name) is not None for name in paxlike.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = paxlike.nothing
