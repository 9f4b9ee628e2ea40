"""Fan-in by letters, and the number formats of each platform. (What is drawn: test_palm.)"""

import pytest

from paxlike.config import ModelConfig, PrecisionConfig
from paxlike.nn.weight import Numerics, fan_in

SIZES = {"D": 2, "N": 3, "H": 5, "K": 7, "F": 11, "V": 13}


@pytest.mark.parametrize(("dims", "inputs"), [("DNH", 2), ("DKH", 2), ("DF", 2), ("DV", 2), ("NHD", 3 * 5), ("FD", 11)])
def test_fan_in_is_what_one_output_sums(dims, inputs):
    assert fan_in(dims, SIZES) == inputs


@pytest.mark.parametrize(
    ("platform", "compute", "attention"),
    [("cpu", "float32", "reference"), ("gpu", "bfloat16", "cudnn"), ("tpu", "bfloat16", "splash")],
)
def test_auto_is_settled_by_the_platform(platform, compute, attention):
    assert Numerics.of(ModelConfig(), PrecisionConfig(), platform) == Numerics(compute, "float32", "float32", attention)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_what_is_said_stays(platform):
    precision = PrecisionConfig("float32", "bfloat16", "bfloat16")
    found = Numerics.of(ModelConfig(attention="xla"), precision, platform)
    assert found == Numerics("float32", "bfloat16", "bfloat16", "xla")
