"""The tiles of a weight, and the errors for weights and meshes that do not fit."""

import pytest

from paxlike.config import ConfigError, QuantConfig
from paxlike.quant.tiles import check_mesh, local_tiles, tiles

QUANT = QuantConfig(weights="bitnet", groups=8, data_tiles=2)
SIZES = {"D": 64, "N": 8, "H": 4, "F": 96, "K": 8, "V": 128}


def shape(letters: str, **sizes: int) -> tuple[int, ...]:
    return tuple((SIZES | sizes)[d] for d in letters)


@pytest.mark.parametrize(
    ("letters", "sizes", "expected"),
    [
        ("DNH", {}, (2, 8)),
        ("DF", {}, (2, 8)),
        ("NHD", {}, (8, 2)),
        ("FD", {}, (8, 2)),
        ("DKH", {"K": 8}, (2, 8)),
        ("DKH", {"K": 2}, (16, 2)),
        ("DKH", {"K": 1}, (16, 1)),
    ],
)
def test_groups_are_along_the_sharded_dimension(letters, sizes, expected):
    assert tiles(letters, shape(letters, **sizes), QUANT) == expected


@pytest.mark.parametrize("letters", ["VD", "DV", "D"])
def test_weights_that_stay_in_high_precision_raise(letters):
    with pytest.raises(
        ConfigError, match="cannot be quantized: embedding, head and norms stay in high precision"
    ):
        tiles(letters, shape(letters), QUANT)


def test_tiles_that_do_not_divide_raise():
    with pytest.raises(
        ConfigError, match=r"the outputs of DF \(64, 90\) cannot be split into 8 tiles"
    ):
        tiles("DF", (64, 90), QUANT)
    with pytest.raises(
        ConfigError, match=r"the inputs of NHD \(6, 4, 64\) cannot be split into 8 tiles"
    ):
        tiles("NHD", (6, 4, 64), QUANT)


def test_a_device_has_whole_tiles_or_a_part_of_the_only_one():
    mesh = {"pod": 1, "data": 2, "model": 4}
    given = ((8, "model"), (16, ("model", "data")), (1, "model"), (2, None))
    assert [local_tiles(n, place, mesh) for n, place in given] == [2, 2, 1, 2]


def test_meshes():
    check_mesh(QUANT, {"pod": 1, "data": 2, "model": 4})
    check_mesh(QuantConfig(weights="bitnet"), {"pod": 1, "data": 3, "model": 5})
    with pytest.raises(ConfigError, match="mesh.model 3 does not divide model.quant.groups 8"):
        check_mesh(QUANT, {"pod": 1, "data": 2, "model": 3})
