"""The mesh: sizes, device order, explicit axes; and no large array is replicated."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from paxlike.config import ConfigError, MeshConfig
from paxlike.parallel.mesh import axis_sizes, check_sharded, make_mesh, spec, weight_spec


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        (MeshConfig(), (1, 8, 1)),
        (MeshConfig(model=4), (1, 2, 4)),
        (MeshConfig(data=2, model=-1), (1, 2, 4)),
        (MeshConfig(pod=-1, data=2, model=2), (2, 2, 2)),
        (MeshConfig(pod=2, data=4, model=1), (2, 4, 1)),
        (MeshConfig(data=1, model=8), (1, 1, 8)),
    ],
)
def test_sizes_axis_order_and_explicit_axes(given, sizes):
    mesh = make_mesh(given)
    assert mesh.axis_names == ("pod", "data", "model") and mesh.devices.shape == sizes
    assert mesh.axis_types == (AxisType.Explicit,) * 3
    # `model` is innermost, then `data`: the axis that communicates most connects neighboring
    # devices.
    assert [device.id for device in mesh.devices.flat] == list(range(8))


def test_only_the_given_devices_are_used():
    mesh = make_mesh(MeshConfig(model=2), jax.devices()[2:6])
    assert [[d.id for d in row] for row in mesh.devices[0]] == [[2, 3], [4, 5]]


@pytest.mark.parametrize(
    "given", [MeshConfig(model=3), MeshConfig(data=2, model=2), MeshConfig(pod=2, data=8, model=1)]
)
def test_sizes_that_do_not_fit(given):
    message = (
        f"mesh pod {given.pod} x data {given.data} x model {given.model} does not fit 8 devices"
    )
    with pytest.raises(ConfigError, match=rf"{message}; choose mesh.model among \[1, 2, 4, 8\]"):
        make_mesh(given)


def test_specs_follow_the_active_mesh():
    """Two key/value heads are sharded over a model axis of 2, and replicated over one of 4."""
    for given, sizes, kv in (
        (MeshConfig(model=2), (4, 2), "model"),
        (MeshConfig(model=4), (2, 4), None),
    ):
        with jax.set_mesh(make_mesh(given)):
            assert dict(axis_sizes()) == {"pod": 1, "data": sizes[0], "model": sizes[1]}
            assert spec("BSKH", (8, 4, 2, 6)) == PartitionSpec(("pod", "data"), None, kv, None)
            assert weight_spec("DKH", (16, 2, 6))[1] == kv
            assert (
                weight_spec(("embed", "mlp"), (16, 8))
                == weight_spec("DF", (16, 8))
                == PartitionSpec("data", "model")
            )
            assert spec(("batch", "length", "embed"), (8, 4, 8)) == spec("BTD", (8, 4, 8))


def sharded(mesh, shape, *places, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*places)))


def test_check_sharded_names_every_large_replicated_array():
    mesh = make_mesh(MeshConfig(model=4))
    tree = {
        "blocks": {
            "wq_DNH": sharded(mesh, (64, 8, 8), "data", "model"),
            "replicated_DF": sharded(mesh, (64, 64)),
            "over_pod_DF": sharded(mesh, (64, 64), "pod"),
            "small_D": sharded(mesh, (64,)),
        },
        "limit_DF": sharded(mesh, (64, 32)),
        "half_DF": sharded(mesh, (64, 32), dtype=np.float16),
        "one_axis_DF": sharded(mesh, (64, 64), "data"),
    }
    with pytest.raises(ValueError, match="at least 8,192 bytes are replicated") as raised:
        check_sharded(tree, large_bytes=64 * 32 * 4)
    message = str(raised.value)
    for name in (
        "blocks/replicated_DF (64, 64) (16,384 bytes)",
        "blocks/over_pod_DF",
        "limit_DF (64, 32) (8,192 bytes)",
    ):
        assert name in message
    for name in ("wq_DNH", "small_D", "half_DF", "one_axis_DF"):
        assert name not in message
    check_sharded(tree, large_bytes=64 * 64 * 4 + 1)


def test_check_sharded_of_arrays_and_of_a_single_device():
    mesh = make_mesh(MeshConfig(data=1, model=1), jax.devices()[:1])
    array = jax.device_put(np.zeros((64, 64), np.float32), NamedSharding(mesh, PartitionSpec()))
    check_sharded({"w_DF": array}, large_bytes=1)
    mesh = make_mesh(MeshConfig(model=2))
    array = jax.device_put(np.zeros((64, 64), np.float32), NamedSharding(mesh, PartitionSpec()))
    with pytest.raises(ValueError, match="w_DF"):
        check_sharded({"w_DF": array}, large_bytes=1)
