"""Loss and every gradient are the same on every mesh: one parametrized test over architectures and meshes."""

import dataclasses

import numpy as np
import pytest
from helpers import error, flat, host_batch, host_params, loss_and_gradients, mesh_of, model_config

from paxlike.config import PrecisionConfig

# With 1, 2, 4 and 8 model shards: fewer key/value heads than shards, as many, and more.
ARCHITECTURES = {
    "multi-query": {"kv_heads": 1},
    "grouped-serial-rms-untied-relu2": {
        "kv_heads": 2, "block": "serial", "norm": "rms", "head": "untied", "feed_forward": "relu2", "remat": "dots",
    },
    "grouped-segments-xla": {"kv_heads": 4, "attention": "xla", "segments": True, "remat": "attention"},
    "multi-head-segments": {"kv_heads": 8, "feed_forward": "gelu", "segments": True, "remat": "full"},
}  # fmt: skip
MESHES = {"8x1": (1, 8, 1), "1x8": (1, 1, 8), "2x4": (1, 2, 4), "2x2x2": (2, 2, 2)}


@pytest.fixture(scope="module", params=ARCHITECTURES.values(), ids=ARCHITECTURES)
def alone(request):
    """(config, parameters, batch, loss, gradients) on one device."""
    words = dict(request.param)
    segments = words.pop("segments", False)
    config = model_config(**words)
    params, batch = host_params(config), host_batch(config, segments=segments)
    return config, params, batch, *loss_and_gradients(config, mesh_of(), params, batch)


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_loss_and_gradients_are_those_of_one_device(alone, sizes):
    config, params, batch, expected_loss, expected = alone
    loss, gradients = loss_and_gradients(config, mesh_of(*sizes), params, batch)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    errors = {name: error(gradient, flat(expected)[name]) for name, gradient in flat(gradients).items()}
    assert max(errors.values()) < 5e-6, errors
    assert all(np.linalg.norm(gradient) > 1e-4 for gradient in flat(expected).values())


def test_bfloat16_stays_near_float32():
    """bfloat16 has 8 bits of mantissa: 0.4 % for each rounding. Gradients come back in the parameters' own dtype."""
    config = model_config()
    params, batch = host_params(config), host_batch(config)
    expected_loss, expected = loss_and_gradients(config, mesh_of(), params, batch)
    narrow = dataclasses.replace(config, precision=PrecisionConfig(compute="bfloat16", gradients="bfloat16"))
    loss, found = loss_and_gradients(narrow, mesh_of(data=2, model=4), params, batch)
    assert loss == pytest.approx(expected_loss, rel=5e-3)
    errors = {name: error(gradient, flat(expected)[name]) for name, gradient in flat(found).items()}
    assert 1e-4 < max(errors.values()) < 0.05, errors
    assert {gradient.dtype for gradient in flat(found).values()} == {np.dtype("float32")}
