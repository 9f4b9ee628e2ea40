"""The plan's line about what quantization sends."""

import dataclasses
import importlib.util

import jax
import pytest

from paxlike.config import Config, DataConfig, MeshConfig, ModelConfig, QuantConfig, TrainConfig
from paxlike.planning import make_plan
from paxlike.planning.quantized import against_unquantized
from paxlike.planning.tables import tables
from paxlike.planning.topology import cluster

pytestmark = pytest.mark.slow

CONFIG = Config(
    name="small",
    model=ModelConfig(
        layers=3, d_model=64, heads=4, head_dim=16, d_ff=128, vocab_size=256, attention="reference"
    ),
    data=DataConfig(sequence_length=8),
    train=TrainConfig(batch_size=8),
    mesh=MeshConfig(model=4),
)
CPU = cluster("cpu:8")


@pytest.fixture
def quick_compiler():
    """The lowest optimization level: a third of the time, and the same bytes."""
    jax.config.update("jax_optimization_level", "O0")
    yield
    jax.config.update("jax_optimization_level", "UNKNOWN")


def plan(made=CPU, config=CONFIG, **quant) -> dict:
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, quant=QuantConfig(**quant))
    )
    return against_unquantized(make_plan.plan(config, made), config, made, lambda text: None)


def test_groups_send_nothing_and_a_whole_weights_statistics_do():
    grouped, whole = plan(weights="bitnet", groups=4), plan(weights="bitnet", statistics="token")
    assert grouped["quantization"]["added"] == []
    assert any(
        "send nothing in addition to the unquantized model" in str(part) for part in tables(grouped)
    )
    assert [(row["kind"], row["axis"]) for row in whole["quantization"]["added"]] == [
        ("all-reduce", "model")
    ]
    assert any("by all-reduce over model" in str(part) for part in tables(whole))


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (684 MB, extra tpu) is not installed"
)
def test_the_whole_block_on_tpus(quick_compiler):
    """The train step with its layers' loops, forward and backward, for eight v5p chips, 2 x 4.

    A quarter as wide, libtpu makes an all-reduce of one of the reduce-scatters, in a step without
    quantization as well.
    """
    model = dataclasses.replace(
        CONFIG.model, d_model=1024, head_dim=128, d_ff=2048, attention="auto"
    )
    config = dataclasses.replace(CONFIG, model=model, data=DataConfig(sequence_length=512))
    grouped, whole = (
        plan(cluster("v5p:2x2x2"), config, **quant)["quantization"]
        for quant in (
            {"weights": "bitnet", "groups": 4},
            {"weights": "bitnet", "statistics": "token"},
        )
    )
    assert grouped["added"] == []
    assert ("all-reduce", "model") in {(row["kind"], row["axis"]) for row in whole["added"]}


def test_an_unquantized_plan_has_no_such_line():
    told = {"refused": ""}
    assert against_unquantized(told, CONFIG, CPU, lambda text: None) is told
