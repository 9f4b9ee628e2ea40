"""The default mesh of a loaded run."""

import pytest

from paxlike.config import ConfigError, MeshConfig, ModelConfig
from paxlike.training.loaded_run import widest_mesh


@pytest.mark.parametrize(
    ("heads", "kv_heads", "devices", "expected"),
    [
        (4, 1, 1, MeshConfig(data=1, model=1)),
        (4, 1, 8, MeshConfig(data=2, model=4)),  # 8 shards do not divide 4 heads
        (8, 1, 8, MeshConfig(data=1, model=8)),
        (12, 3, 8, MeshConfig(data=8, model=1)),  # 2 and 4 shards do not divide 3 key/value heads
    ],
)
def test_the_largest_model_axis_that_fits(heads, kv_heads, devices, expected):
    model = ModelConfig(
        d_model=64, heads=heads, kv_heads=kv_heads, head_dim=8, d_ff=128, vocab_size=512
    )
    assert widest_mesh(model, devices) == expected


def test_no_mesh_fits():
    with pytest.raises(ConfigError, match="fit no mesh of 7 devices"):
        widest_mesh(ModelConfig(d_model=64, heads=4, head_dim=8, d_ff=128), 7)
