"""Meshes on machines that are not here."""

import importlib.util

import pytest

from paxlike.config import ConfigError, MeshConfig, UserError
from paxlike.parallel.mesh import make_mesh
from paxlike.plan.topology import tpu_devices

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (684 MB, extra tpu) is not installed"
)


def test_a_name_of_another_form_is_refused():
    with pytest.raises(UserError, match="is not of the form v4:4x4x4"):
        tpu_devices("v4-128")


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'paxlike\[tpu\]'"):
        tpu_devices("v4:4x4x4")


@needs_libtpu
def test_an_unknown_topology_is_refused():
    with pytest.raises(UserError, match="does not know 1 x v4:3x1x1"):
        tpu_devices("v4:3x1x1")


@needs_libtpu
def test_pods_lie_along_slices():
    """On two slices, `pod` runs between them: a pod's devices are of one slice, and no other axis leaves it."""
    devices = tpu_devices("v4:2x2x4", slices=2)
    mesh = make_mesh(MeshConfig(pod=2, data=-1, model=4), devices)
    assert dict(mesh.shape) == {"pod": 2, "data": 4, "model": 4}
    for pod in range(2):
        assert {device.slice_index for device in mesh.devices[pod].flat} == {pod}
    with pytest.raises(ConfigError, match="does not fit 32 devices"):
        make_mesh(MeshConfig(pod=3, data=-1, model=4), devices)
