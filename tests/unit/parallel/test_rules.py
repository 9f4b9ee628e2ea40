"""The sharding rules: every row of the table, the derived cases, and every error."""

import math

import pytest

from paxlike.config import ConfigError
from paxlike.parallel import rules
from paxlike.parallel.axes import ALPHABET
from paxlike.parallel.rules import gathered, shards, spec, weight_spec

MESH = {"pod": 2, "data": 4, "model": 8}
WITH_EXPERTS = {"pod": 2, "data": 2, "expert": 2, "model": 8}
SIZES = {
    "A": 3,
    "B": 16,
    "T": 5,
    "S": 5,
    "D": 64,
    "F": 128,
    "N": 16,
    "K": 8,
    "G": 2,
    "H": 7,
    "V": 256,
    "L": 3,
    "P": 32,
    "R": 4,
    "W": 6,
    "E": 4,
    "M": 24,
    "U": 48,
    "Q": 8,
    "I": 16,
    "O": 12,
    "X": 10,
}


def shape(dims):
    return tuple(SIZES[letter] for letter in dims)


# Batch over pod and data, wide dimensions over model, and a weight's width over data.
ACTIVATION = {
    "A": None, "B": ("pod", "data", "expert"), "T": None, "S": None, "W": None, "D": "model",
    "F": "model", "N": "model", "K": "model", "H": None, "V": "model", "R": None, "I": None,
    "E": None, "M": "model", "U": "model", "O": None, "X": None,
}  # fmt: skip
WEIGHT = {
    "L": None, "D": ("data", "expert"), "F": "model", "N": "model", "K": "model", "H": None,
    "V": "model", "P": "model", "R": "data", "Q": "data", "I": "data", "E": "expert",
    "M": "model", "U": "model", "X": None,
}  # fmt: skip


def test_the_tables_have_exactly_these_rows():
    assert rules.ACTIVATIONS == ACTIVATION and rules.WEIGHTS == WEIGHT


@pytest.mark.parametrize("letter", ACTIVATION)
def test_every_row_of_activations(letter):
    place = ACTIVATION[letter]
    assert spec(letter, shape(letter), WITH_EXPERTS) == (place,)
    without = ("pod", "data") if letter == "B" else place
    assert spec(letter, shape(letter), MESH) == (without,)


@pytest.mark.parametrize(
    ("letter", "dims"),
    [
        ("L", "LDF"),
        ("D", "DF"),
        ("F", "FD"),
        ("N", "NHD"),
        ("K", "DKH"),
        ("H", "DNH"),
        ("V", "VD"),
        ("P", "PD"),
        ("X", "DX"),
    ],
)
def test_every_row_of_weights(letter, dims):
    place, at = WEIGHT[letter], dims.index(letter)
    assert weight_spec(dims, shape(dims), WITH_EXPERTS)[at] == place
    assert weight_spec(dims, shape(dims), MESH)[at] == ("data" if letter == "D" else place)


@pytest.mark.parametrize(
    ("dims", "places"),
    [
        ("BTD", (("pod", "data"), None, "model")),
        ("BTNH", (("pod", "data"), None, "model", None)),
        ("ABT", (None, ("pod", "data"), None)),
    ],
)
def test_activations(dims, places):
    assert spec(dims, shape(dims), MESH) == places


@pytest.mark.parametrize(
    ("dims", "places"),
    [
        ("DNH", ("data", "model", None)),
        ("NHD", ("model", None, "data")),
        ("DF", ("data", "model")),
        ("FD", ("model", "data")),
        ("VD", ("model", "data")),
        ("LDKH", (None, "data", "model", None)),
        ("D", ("model",)),
        ("LD", (None, "model")),
    ],
)
def test_weights(dims, places):
    assert weight_spec(dims, shape(dims), MESH) == places


@pytest.mark.parametrize(
    ("dims", "places"),
    [
        ("LDF", (None, ("data", "expert"), "model")),
        ("EDM", ("expert", "data", "model")),
        ("LEMD", (None, "expert", "model", "data")),
        ("ENHD", ("expert", "model", None, "data")),
        ("DE", (("model", "data", "expert"), None)),
        ("E", (None,)),
        ("RD", (None, ("model", "data", "expert"))),
        ("QKH", ("data", "model", None)),
    ],
)
def test_weights_on_a_mesh_with_experts(dims, places):
    """E of a weight that begins with it is over `expert`; all other weights have D over it."""
    assert weight_spec(dims, shape(dims), WITH_EXPERTS) == places
    without = tuple(
        rules._place(tuple(axis for axis in rules.axes_of(place) if axis != "expert"))
        for place in places
    )
    assert weight_spec(dims, shape(dims), MESH) == without


def test_weights_of_experts_are_gathered_over_data_alone():
    places = weight_spec("EDM", shape("EDM"), WITH_EXPERTS)
    assert [rules.gathered_axes(place) for place in places] == [(), ("data",), ()]
    assert gathered(places) == ("expert", None, "model")
    places = weight_spec("DF", shape("DF"), WITH_EXPERTS)
    assert [rules.gathered_axes(place) for place in places] == [("data", "expert"), ()]
    assert gathered(places) == (None, "model")


@pytest.mark.parametrize("dims", ["DKH", "LDKH"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_fewer_key_value_heads_than_model_shards_are_replicated(dims, kv_heads):
    """Their weights have D sharded over model and data together."""
    sizes = (SIZES["L"],) * dims.startswith("L") + (SIZES["D"], kv_heads, SIZES["H"])
    assert weight_spec(dims, sizes, MESH)[-3:] == (("model", "data"), None, None)
    assert spec("BSKH", (16, 5, kv_heads, 7), MESH) == (("pod", "data"), None, None, None)


def test_key_value_heads_that_do_not_divide_the_model_shards():
    for place in (spec, weight_spec):
        with pytest.raises(
            ConfigError,
            match=r"mesh.model 8 is not a multiple of model.kv_heads 3.*choose a mesh.model",
        ):
            place("DKH", (64, 3, 7), MESH)
    with pytest.raises(
        ConfigError, match=r"K \(key/value heads\) is 12.*model 8.*model.kv_heads, mesh.model"
    ):
        spec("BSKH", (16, 5, 12, 7), MESH)


@pytest.mark.parametrize("place", [spec, weight_spec])
def test_a_letter_without_a_row(place):
    with pytest.raises(
        ConfigError, match="'Y' has no row in the sharding rules; letters are ABTSDFNKGHVL"
    ):
        place("DY", (64, 8), MESH)
    with pytest.raises(
        ConfigError, match="'G' has no row.*it means query heads per key/value head.*add a row"
    ):
        place("DG", (64, 8), MESH)


@pytest.mark.parametrize(
    ("place", "dims", "axis"),
    [
        (spec, "DF", "model"),
        (spec, "NK", "model"),
        (weight_spec, "FV", "model"),
        (weight_spec, "DDF", "data"),
    ],
)
def test_two_letters_on_one_axis(place, dims, axis):
    with pytest.raises(
        ConfigError,
        match=f"in {dims}, both {dims[0]} and {dims[1]} are sharded over the mesh axis '{axis}'",
    ):
        place(dims, shape(dims), MESH)


@pytest.mark.parametrize(
    ("place", "dims", "letter", "size", "axis", "remedy"),
    [
        (spec, "BT", "B", 12, "pod 2 x data 4", "train.batch_size, train.accumulate, mesh.data"),
        (spec, "BTD", "D", 60, "model 8", "model.d_model, mesh.data, mesh.model"),
        (spec, "BTF", "F", 12, "model 8", "model.d_ff, mesh.model"),
        (weight_spec, "VD", "V", 100, "model 8", "model.vocab_multiple, mesh.model"),
        (weight_spec, "DNH", "N", 12, "model 8", "model.heads, mesh.model"),
        (weight_spec, "DF", "D", 62, "data 4", "model.d_model, mesh.data, mesh.model"),
    ],
)
def test_a_size_that_does_not_divide(place, dims, letter, size, axis, remedy):
    sizes = tuple(size if d == letter else SIZES[d] for d in dims)
    with pytest.raises(ConfigError) as raised:
        place(dims, sizes, MESH)
    message = str(raised.value)
    assert f"in {dims} {sizes}, {letter} ({ALPHABET[letter]}) is {size}" in message
    assert f"the mesh axis {axis} does not divide" in message and f"({remedy})" in message


def test_experts_that_do_not_divide():
    with pytest.raises(
        ConfigError, match="E .experts. is 3.*expert 2 does not divide.*model.experts.count, mesh.e"
    ):
        weight_spec("EDM", (3, 64, 24), WITH_EXPERTS)


def test_width_over_two_axes_must_divide_their_product():
    with pytest.raises(
        ConfigError, match="D .model width. is 40.*model 8 x data 4 does not divide"
    ):
        weight_spec("DKH", (40, 1, 7), MESH)


@pytest.mark.parametrize("place", [spec, weight_spec])
def test_every_dimension_needs_a_letter(place):
    with pytest.raises(ValueError, match="zip"):
        place("DF", (64, 128, 7), MESH)


def test_gathered_leaves_the_model_axis():
    assert gathered(("data", "model", None)) == (None, "model", None)
    assert gathered((("model", "data"), None)) == ("model", None)
    assert gathered((("pod", "data", "model"),)) == (("pod", "model"),)
    assert gathered((("model", "data", "expert"),)) == ("model",)


def test_shards():
    assert [
        shards(place, MESH) for place in (None, "data", ("pod", "data"), ("model", "data"))
    ] == [1, 4, 8, 32]


def test_every_stored_matrix_is_sharded_over_the_whole_pod():
    """Each of the data x model devices holds a different part of every matrix."""
    for dims in ("DNH", "NHD", "DKH", "DF", "FD", "VD", "DV"):
        for kv_heads in (1, 2, 8):
            sizes = tuple(kv_heads if d == "K" else SIZES[d] for d in dims)
            parts = math.prod(shards(place, MESH) for place in weight_spec(dims, sizes, MESH))
            assert parts == MESH["data"] * MESH["model"], (dims, sizes)
