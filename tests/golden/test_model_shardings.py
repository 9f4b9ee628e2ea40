"""Every config's decoder, traced on an abstract mesh, is sharded as in the golden tables."""

import jax
import pytest
from helpers import flat, numerics_of
from jax.sharding import AbstractMesh, AxisType

from paxlike.config import ConfigError, MeshConfig, load
from paxlike.models.decoder import init_params
from paxlike.parallel.mesh import check_sharded
from tools import update_goldens as goldens

AXES = tuple(MeshConfig(1, 1, 1).axes)
"""Without expert parallelism."""


def traced(name: str, sizes: tuple[int, int, int]) -> dict:
    """Returns shapes and shardings of the parameters, without computing them."""
    config = load(goldens.ROOT / "configs" / f"{name}.py")
    mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Explicit,) * 3)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.eval_shape(lambda: init_params(config.model, numerics_of(config), 0))


@pytest.mark.parametrize("name", goldens.TABLES)
def test_shardings_match_the_golden_table(name):
    table = {}
    for line in goldens.path(name).read_text().splitlines()[3:]:
        parameter, *cells = (cell.strip() for cell in line.split("  ") if cell.strip())
        table[parameter] = cells
    found = {}
    for parameter, leaf in flat(traced(name, goldens.TABLES[name])).items():
        places = [
            "-" if p is None else p if isinstance(p, str) else "+".join(p)
            for p in leaf.sharding.spec
        ]
        local = leaf.sharding.shard_shape(leaf.shape)
        found[parameter] = [
            " x ".join(map(str, leaf.shape)),
            ", ".join(places),
            " x ".join(map(str, local)),
        ]
    assert found == table


@pytest.mark.parametrize("name", goldens.TABLES)
@pytest.mark.parametrize("model", [1, 2])
def test_no_large_array_is_replicated_with_one_or_two_model_shards(name, model):
    check_sharded(traced(name, (1, 256 if "palm" in name else 8, model)))


def test_a_mesh_that_does_not_fit():
    with pytest.raises(ConfigError, match="which the mesh axis model 32 does not divide"):
        traced("palm_8b", (1, 1, 32))
