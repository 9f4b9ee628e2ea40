"""Meshes on machines that are not here."""

import importlib.util

import pytest

from paxlike.config import ConfigError, MeshConfig, UserError
from paxlike.parallel.mesh import make_mesh
from paxlike.planning.topology import MissingCompiler, cluster, tpu_devices

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (684 MB, extra tpu) is not installed"
)


def test_a_name_of_another_form_is_refused():
    with pytest.raises(UserError, match="is not of the form v4:4x4x4"):
        tpu_devices("v4-128")


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingCompiler, match=r"pip install 'paxlike\[plan-tpu\]'"):
        tpu_devices("v4:4x4x4")
    with pytest.raises(MissingCompiler, match=r"pip install 'paxlike\[plan-gpu\]'"):
        cluster("h100:2x8").devices()


@pytest.mark.parametrize(
    ("name", "platform", "pods", "devices", "chips"),
    [
        ("v4:12x16x16", "tpu", 2, 6144, 6144),
        ("v7x:2x2x2", "tpu", 1, 16, 8),
        ("h200:32x8", "gpu", 1, 256, 256),
        ("cpu:8", "cpu", 2, 16, 16),
    ],
)
def test_clusters(name, platform, pods, devices, chips):
    made = cluster(name, pods)
    assert (made.platform, made.device_count, made.chips) == (platform, devices, chips)
    assert (made.chip is None) == (made.usable is None) == (platform == "cpu")
    if made.chip:
        assert made.usable < 1.01 * made.chip.device_memory


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v4", "is not of the form"),
        ("v4:4x4x", "is not of the form"),
        ("v4:0x4x4", "is not of the form"),
        (
            "v9:4x4x4",
            "chip 'v9'; known chips are v2, v3, v4, v5e, v5p, v6e, v7x, h100, h200, b200 and cpu",
        ),
        ("h100:8", "needs two sizes, hosts x GPUs per host, such as h100:8x8"),
    ],
)
def test_names_that_cannot_be(name, message):
    with pytest.raises(UserError, match=message):
        cluster(name)


@needs_libtpu
def test_an_unknown_topology_is_refused():
    with pytest.raises(UserError, match="does not know 1 x v4:3x1x1"):
        tpu_devices("v4:3x1x1")


@needs_libtpu
def test_pods_lie_along_slices():
    """On two slices, `pod` runs between them: a pod's devices are of one slice, and no other axis
    leaves it.
    """
    devices = tpu_devices("v4:2x2x4", slices=2)
    mesh = make_mesh(MeshConfig(pod=2, data=-1, model=4), devices)
    assert dict(mesh.shape) == {"pod": 2, "data": 4, "model": 4}
    for pod in range(2):
        assert {device.slice_index for device in mesh.devices[pod].flat} == {pod}
    with pytest.raises(ConfigError, match="does not fit 32 devices"):
        make_mesh(MeshConfig(pod=3, data=-1, model=4), devices)
    with pytest.raises(
        ConfigError, match="mesh.pod is 1, but the devices are 2 TPU slices.*set mesh.pod to 2"
    ):
        make_mesh(MeshConfig(data=-1, model=4), devices)


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:2x2x2", "v6e:4x4", "v7x:2x2x2"])
def test_the_devices_are_the_chips_of_the_hardware_table(name):
    made = cluster(name)
    devices = made.devices()
    assert len(devices) == made.device_count and {d.device_kind for d in devices} <= set(
        made.chip.device_kinds
    )


@pytest.mark.skipif(
    not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
    reason="JAX's CUDA plugin (460 MB, extra plan-gpu) is not installed",
)
@pytest.mark.parametrize("name", ["h100:4x8", "h200:2x8", "b200:1x8"])
def test_gpus_are_those_of_the_hardware_table(name):
    made = cluster(name)
    devices = made.devices()
    assert {d.process_index for d in devices} == set(range(made.shape[0])) and len(
        devices
    ) == made.device_count
    assert {d.device_kind for d in devices} <= set(made.chip.device_kinds)
