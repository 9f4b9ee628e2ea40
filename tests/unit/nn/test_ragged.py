"""Rows that travel along `expert`: the emulation against NumPy, and the way back as transpose."""

import jax
import numpy as np
import pytest
from helpers import mesh_of
from jax.sharding import PartitionSpec as P

from paxlike.nn.collectives import index, on_devices
from paxlike.nn.ragged import exchanged, ways

SIZES = {
    "uneven": [[3, 0, 2, 1], [1, 4, 0, 1]],
    "to-one-expert": [[0, 0, 6, 0], [0, 0, 6, 0]],
    "from-one-device": [[0, 0, 0, 6], [6, 0, 0, 0]],
}
ROWS, BUFFER = 6, 12


@pytest.mark.parametrize("sizes_SE", SIZES.values(), ids=SIZES)
def test_rows_arrive_sorted_by_expert_and_return(sizes_SE):
    """2 devices with 2 of 4 experts each. Of one expert, rows of the first sender come first."""
    sizes = np.array(sizes_SE, np.int32)
    experts = [np.repeat(np.arange(4), own) for own in sizes]
    x = np.random.default_rng(0).standard_normal((2 * ROWS, 3)).astype(np.float32)
    expected = np.zeros((2 * BUFFER, 3), np.float32)
    for device in range(2):
        arrived = [
            x[sender * ROWS : (sender + 1) * ROWS][experts[sender] == expert]
            for expert in (2 * device, 2 * device + 1)
            for sender in range(2)
        ]
        rows = np.concatenate(arrived)
        expected[device * BUFFER : device * BUFFER + len(rows)] = rows

    def there(x, sizes):
        made = ways(sizes)
        return exchanged((ROWS, BUFFER), x, made.there, made.back)

    def back(y, sizes):
        made = ways(sizes)
        # What lies behind the rows that arrived must not matter.
        behind = np.arange(BUFFER)[:, None] >= made.there.recv_sizes.sum()
        y = jax.numpy.where(behind, jax.numpy.nan, y)
        return exchanged((BUFFER, ROWS), y, made.back, made.there)

    with jax.set_mesh(mesh_of(expert=2)):
        rows, everywhere = P("expert", None), P(None, None)
        run, again = (jax.jit(on_devices(way, (rows, everywhere), rows)) for way in (there, back))
        place = jax.NamedSharding(jax.sharding.get_mesh(), rows)
        y, pullback = jax.vjp(lambda x: run(x, sizes), jax.device_put(x, place))
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(again(y, sizes), x)
        dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
        (dx,) = pullback(jax.device_put(dy, place))
        np.testing.assert_allclose(np.vdot(dx, x), np.vdot(dy, expected), rtol=1e-5)
        np.testing.assert_array_equal(dx, again(jax.device_put(dy, place), sizes))


def test_a_position_along_several_axes_is_major_first():
    with jax.set_mesh(mesh_of(data=2, expert=2)):
        axes = ("data", "expert")
        run = on_devices(lambda: jax.numpy.asarray(index(axes))[None], (), P(axes))
        assert jax.jit(run)().tolist() == [0, 1, 2, 3]
