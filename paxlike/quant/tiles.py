"""The tiles of a quantized weight: the parts that have an alpha and a beta of their own. Imports no JAX.

A weight is a matrix of inputs x outputs (`wq_DNH` is D x NH). Its tiles are a grid that the model's config fixes:

| weight | inputs are cut into | outputs are cut into |
|---|---|---|
| column-parallel: wq_DNH, wgate_DF, wup_DF | data_tiles | groups |
| row-parallel: wo_NHD, wdown_FD | groups | data_tiles |
| wk_DKH, wv_DKH, groups divide K | data_tiles | groups |
| wk_DKH, wv_DKH, fewer heads than groups | groups x data_tiles | K |

The last row is stored with D over `model` where there are fewer heads than model shards (`parallel/rules.py`), and is cut finely
enough for either place. A mesh whose axes divide the tiles never cuts one, so that each device has all that its statistics need.
"""

from collections.abc import Mapping

from paxlike.config import ConfigError, QuantConfig
from paxlike.parallel.rules import Axis, shards


def tiles(letters: str, shape: tuple[int, ...], quant: QuantConfig) -> tuple[int, int]:
    """(parts of the inputs, parts of the outputs) of a weight of one layer.

    Raises ConfigError for a weight that stays in high precision, such as the embedding, and for parts that do not divide.
    """
    G, R = quant.groups, quant.data_tiles
    if letters in ("DNH", "DF"):
        cut = R, G
    elif letters in ("NHD", "FD"):
        cut = G, R
    elif letters == "DKH":
        cut = (R, G) if shape[1] % G == 0 else (G * R, shape[1])
    else:
        raise ConfigError(
            f"a weight {letters} {tuple(shape)} cannot be quantized: embedding, head and norms stay in high precision "
            "(also the head that is tied to the embedding); quantize the projections of the blocks."
        )
    sizes = shape[0], shape[1] if letters[0] == "D" else shape[-1]
    for what, size, parts in zip(("inputs", "outputs"), sizes, cut, strict=True):
        if size % parts:
            raise ConfigError(
                f"the {what} of {letters} {tuple(shape)} cannot be cut into {parts} tiles (model.quant.groups {G}, "
                f"data_tiles {R}): {size} is not a multiple of {parts}."
            )
    return cut


def check_mesh(quant: QuantConfig, mesh: Mapping[str, int]) -> None:
    """Raises ConfigError where the mesh would cut a tile. One group and one tile may lie on any mesh: their statistics are sums over it."""
    if quant.groups == 1 and quant.data_tiles > 1 and mesh["model"] > 1:
        raise ConfigError(
            f"model.quant.data_tiles {quant.data_tiles} with model.quant.groups 1 needs mesh.model 1, not {mesh['model']}: a tile "
            "would lie on several model shards; train with as many groups as there are model shards, or more."
        )
    for field, parts, axis in (("groups", quant.groups, "model"), ("data_tiles", quant.data_tiles, "data")):
        if parts > 1 and parts % mesh[axis]:
            raise ConfigError(
                f"mesh.{axis} {mesh[axis]} does not divide model.quant.{field} {parts}, which belongs to the model: choose "
                f"a mesh.{axis} that does, or train with another number of {field}."
            )


def local_tiles(parts: int, place: Axis, mesh: Mapping[str, int]) -> int:
    """How many of a dimension's tiles a device has; 1 also where it has a part of the only one."""
    return max(1, parts // shards(place, mesh))
