"""Host batches onto the mesh: every device gets its rows of the batch, from a reader that read no
others.
"""

import jax
import numpy as np
import pytest

from paxlike.config import ConfigError, MeshConfig
from paxlike.parallel import host_batches
from paxlike.parallel.host_batches import local_rows, to_devices
from paxlike.parallel.mesh import make_mesh

T = 3
BATCH_BT = np.arange(16 * T, dtype=np.int32).reshape(16, T) + 100


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 2, 4), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_device_holds_its_rows(sizes, accumulate):
    """Step a, part b of the batch is row a*B + b; device (pod, data, model) holds parts pod, data
    of every step.
    """
    pod, data, model = sizes
    mesh = make_mesh(MeshConfig(*sizes))
    with jax.set_mesh(mesh):
        rows = local_rows(16, accumulate)
        np.testing.assert_array_equal(rows, np.arange(16))
        array = to_devices(BATCH_BT[rows], rows, 16, accumulate)
    assert array.shape == (accumulate, 16 // accumulate, T) and array.dtype == np.int32
    part = 16 // accumulate // (pod * data)
    shards = {shard.device.id: np.asarray(shard.data) for shard in array.addressable_shards}
    for (p, d, m), device in np.ndenumerate(mesh.devices):
        first = (p * data + d) * part
        wanted = [
            [BATCH_BT[a * (16 // accumulate) + first + b] for b in range(part)]
            for a in range(accumulate)
        ]
        np.testing.assert_array_equal(
            shards[device.id], wanted, err_msg=f"pod {p} data {d} model {m}"
        )


@pytest.mark.parametrize(
    ("here", "accumulate", "wanted"),
    [
        ([0, 1], 1, [0, 1, 2, 3]),
        ([1], 1, [0, 1, 2, 3]),
        ([2, 3], 1, [4, 5, 6, 7]),
        ([0, 1, 6], 1, [0, 1, 2, 3, 12, 13, 14, 15]),
        ([2, 3], 2, [2, 3, 10, 11]),
        ([4, 5, 6, 7], 4, [2, 3, 6, 7, 10, 11, 14, 15]),
    ],
)
def test_a_process_reads_only_the_rows_of_its_devices(monkeypatch, here, accumulate, wanted):
    """data 4 x model 2, of which this process has the devices `here`: with accumulation its rows
    are not neighbors.
    """

    class OfOneProcess(jax.sharding.NamedSharding):
        def addressable_devices_indices_map(self, shape):
            return {
                d: index for d, index in super().devices_indices_map(shape).items() if d.id in here
            }

    monkeypatch.setattr(host_batches, "NamedSharding", OfOneProcess)
    with jax.set_mesh(make_mesh(MeshConfig(data=4, model=2))):
        np.testing.assert_array_equal(local_rows(16, accumulate), wanted)


def test_rows_are_found_by_their_number_not_their_order(monkeypatch):
    """A process that holds rows 4 … 7 gives four rows: the callback of its devices finds them."""
    asked = {}

    def from_callback(shape, places, callback):
        for device, index in places.devices_indices_map(shape).items():
            asked[device.id] = lambda index=index: callback(index)
        return shape

    with jax.set_mesh(make_mesh(MeshConfig(data=4, model=2))):
        monkeypatch.setattr(jax, "make_array_from_callback", from_callback)
        rows = np.array([2, 3, 10, 11])
        assert to_devices(BATCH_BT[rows], rows, 16, 2) == (2, 8, T)
    for device in (2, 3):
        np.testing.assert_array_equal(asked[device](), BATCH_BT[rows].reshape(2, 2, T))


def test_a_process_that_lacks_a_row_says_so():
    """And does not fill its place with another row."""
    with jax.set_mesh(make_mesh(MeshConfig(data=4, model=2))):
        rows = np.arange(15)
        with pytest.raises(ValueError, match=r"need rows of the batch other than \[0, 1,"):
            to_devices(BATCH_BT[rows], rows, 16, 1)


def test_a_batch_that_the_mesh_does_not_divide():
    with jax.set_mesh(make_mesh(MeshConfig())):
        with pytest.raises(
            ConfigError, match=r"B \(batch\) is 4.*train.batch_size, train.accumulate, mesh.data"
        ):
            local_rows(8, 2)
