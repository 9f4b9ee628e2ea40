"""A plan for GPUs that are not here: memory, collectives and FLOPs of what XLA makes for them."""

import importlib.util

import pytest

from paxlike.accounting.executed_flops import attention_kernel_flops, executed_flops
from paxlike.config import Config, DataConfig, MeshConfig, ModelConfig, TrainConfig
from paxlike.planning.make_plan import plan
from paxlike.planning.topology import cluster

needs_plugin = pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason="JAX's CUDA plugin (460 MB, extra plan-gpu) is not installed",
)
SHAPE = {
    "layers": 2,
    "d_model": 256,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 64,
    "d_ff": 512,
    "vocab_size": 512,
}


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize("remat", ["attention", "full"])
def test_a_plan_for_two_hosts(remat):
    config = Config(
        model=ModelConfig(**SHAPE, remat=remat),
        data=DataConfig(sequence_length=256),
        train=TrainConfig(batch_size=8),
        mesh=MeshConfig(model=2),
    )
    told = plan(config, cluster("h100:2x2"))
    assert told["fits"] and told["mesh"] == {"pod": 1, "data": 2, "model": 2}
    # The kernel that cannot be compiled here is counted by formula, all else from the program.
    assert told["flops"]["per_token"] == pytest.approx(
        executed_flops(config.model, 256, "cudnn").total, rel=1e-9
    )
    over = {
        (row["axis"], row["wires"])
        for row in told["collectives"]
        if row["axis"] in ("data", "model")
    }
    assert over == {("data", "NVLink and network"), ("model", "NVLink")}
    assert 0 < told["predicted"]["mfu"] < told["predicted"]["hfu"] < 1


def test_a_kernels_flops():
    """Forward 2 products and backward 5 of T x T x H, for each head and layer; forward twice where
    it runs again.
    """
    product = 2 * 2 * 4 * 64 * 256
    for remat, products in (("none", 7), ("attention", 7), ("dots", 9), ("full", 9)):
        assert (
            attention_kernel_flops(ModelConfig(**SHAPE, remat=remat), 256, "cudnn")
            == products * product
        )
    assert (
        attention_kernel_flops(ModelConfig(**SHAPE, remat="full"), 256, "splash")
        == (2 + 2 + 7) * product
    )
