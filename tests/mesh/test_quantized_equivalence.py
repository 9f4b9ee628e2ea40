"""Loss and gradients of a quantized model are equal on all meshes whose axes divide its groups."""

import numpy as np
import pytest
from helpers import (
    error,
    flat,
    host_batch,
    host_params,
    loss_and_gradients,
    mesh_of,
    model_config,
    outside_and_inside,
)

from paxlike.config import ConfigError, QuantConfig

# With fewer key/value heads than groups, as many, and tiles over data; every kind of weight,
# variant and statistic.
CASES = {
    "multi-query": ({}, {"groups": 8}),
    "ternary-code-tiles": (
        {"kv_heads": 2, "d_model": 64, "block": "serial", "feed_forward": "gelu"},
        {"weights": "bitnet_b158", "variant": "code", "groups": 8, "data_tiles": 8},
    ),
    "ungrouped": ({"kv_heads": 8}, {"groups": 1}),
    "tensor-statistics": (
        {"feed_forward": "relu2"}, {"groups": 8, "statistics": "tensor", "nonnegative": True},
    ),
}  # fmt: skip
MESHES = {"8x1": (1, 8, 1), "1x8": (1, 1, 8), "2x4": (1, 2, 4)}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def alone(request):
    """(config, parameters, batch, loss, gradients) on one device."""
    words, quant = request.param
    config = model_config(quant=QuantConfig(**{"weights": "bitnet", **quant}), **words)
    params, batch = host_params(config), host_batch(config)
    return config, params, batch, *loss_and_gradients(config, mesh_of(), params, batch)


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_loss_and_gradients_are_those_of_one_device(alone, sizes):
    """Differentiated outside of the map, and inside as in training.

    A float32 sum in another order can round an activation to the next of its 256 steps. One of the
    thousands here changes the loss by 1e-5 and gradients by 1e-3. Groups that followed the mesh
    would change them by more than 0.1.
    """
    config, params, batch, expected_loss, expected = alone
    found = outside_and_inside(config, mesh_of(*sizes), params, batch)
    for kind, (loss, gradients) in found.items():
        assert loss == pytest.approx(expected_loss, rel=5e-5), kind
        errors = {name: error(g, flat(expected)[name]) for name, g in flat(gradients).items()}
        assert max(errors.values()) < 5e-3, (kind, errors)
    assert all(np.linalg.norm(gradient) > 1e-4 for gradient in flat(expected).values())


def test_another_number_of_groups_is_another_model():
    """What the test above would find if groups followed the mesh."""
    found = []
    for groups in (1, 4, 8):
        config = model_config(
            quant=QuantConfig(weights="bitnet", groups=groups, statistics="token")
        )
        found.append(loss_and_gradients(config, mesh_of(), host_params(config), host_batch(config)))
    for (loss, gradients), (other_loss, other) in zip(found, found[1:], strict=False):
        assert abs(loss - other_loss) > 1e-3
        assert max(error(g, flat(other)[name]) for name, g in flat(gradients).items()) > 0.1


@pytest.mark.parametrize(
    ("quant", "sizes", "message"),
    [
        ({"groups": 2}, (1, 2, 4), "mesh.model 4 does not divide model.quant.groups 2"),
        (
            {"groups": 4, "data_tiles": 2},
            (1, 4, 2),
            "mesh.data 4 does not divide model.quant.data_tiles 2",
        ),
        ({"data_tiles": 2}, (1, 2, 2), "with model.quant.groups 1 requires mesh.model 1, not 2"),
    ],
)
def test_a_mesh_that_would_split_a_group_raises(quant, sizes, message):
    config = model_config(quant=QuantConfig(weights="bitnet", **quant))
    with pytest.raises(ConfigError, match=message):
        loss_and_gradients(config, mesh_of(*sizes), host_params(config), host_batch(config))
