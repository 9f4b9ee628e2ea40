"""What every kind of adapter must hold to: a row of the tables is tested by being there."""

import dataclasses

import jax
import pytest
from helpers import flat, mesh_of, model_config, numerics_of

from paxlike.accounting.adapted_parameters import trained_shapes
from paxlike.adapt.forms import FORMS
from paxlike.adapt.runs import trained_layers
from paxlike.architecture.adapters import ADAPTERS
from paxlike.architecture.stack import groups
from paxlike.config import AdaptConfig
from paxlike.config.adapt import FIELDS
from paxlike.training.derived import abstract_derived
from paxlike.training.state import abstract_trained

FIVE_LAYERS = {"pattern": ("serial_local", "serial"), "layers": 5, "sliding_window": 5}
CASES = {
    "two periods and a layer": (FIVE_LAYERS, ()),
    "some layers": ({"layers": 4}, (1, 3)),
}


def test_every_kind_has_a_row_in_each_table():
    assert set(FIELDS) == set(ADAPTERS) == set(FORMS)


@pytest.mark.parametrize("kind", sorted(set(FORMS) - {"none"}))
@pytest.mark.parametrize(("shape", "layers"), CASES.values(), ids=CASES)
def test_initial_weights_have_the_declared_shapes(kind, shape, layers):
    if kind == "prefix" and layers:
        layers = ()  # a prefix is in all layers
    rank = {"rank": 2} if "rank" in FIELDS[kind] else {}
    config = dataclasses.replace(
        model_config(**shape), adapt=AdaptConfig(kind, layers=layers, **rank)
    )
    with jax.set_mesh(mesh_of(1, 2, 4)):
        found = {
            n: leaf.shape for n, leaf in flat(abstract_trained(config, numerics_of(config))).items()
        }
        derived = flat(abstract_derived(config))
    assert found == dict(trained_shapes(config.model, config.adapt))
    sizes = trained_layers(config.model, config.adapt)
    assert all(leaf.shape[0] == sizes[name.split("/")[0]] for name, leaf in derived.items())
    assert set(sizes) == {group.name for group in groups(config.model)}
