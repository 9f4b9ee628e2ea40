"""The tiles of a quantized weight: the blocks that have their own alpha and beta. Imports no JAX.

A weight is a matrix of inputs x outputs (`wq_DNH` is D x NH). The model's config fixes its grid of
tiles:

| weight | splits of inputs | splits of outputs |
|---|---|---|
| column-parallel: wq_DNH, wgate_DF, wup_DF | data_tiles | groups |
| row-parallel: wo_NHD, wdown_FD | groups | data_tiles |
| wk_DKH, wv_DKH if groups divides K | data_tiles | groups |
| wk_DKH, wv_DKH with fewer heads than groups | groups x data_tiles | K |

With fewer key/value heads than model shards, the last row's weights are stored with D sharded over
`model` (`parallel/rules.py`); the tiles are fine enough for either placement. A mesh whose axes
divide the tile counts never splits a tile, so each device computes its statistics locally.
"""

from collections.abc import Mapping

from paxlike.config import ConfigError, QuantConfig
from paxlike.parallel.rules import Axis, shards


def tiles(letters: str, shape: tuple[int, ...], quant: QuantConfig) -> tuple[int, int]:
    """Returns the number of tiles along the inputs and along the outputs of one layer's weight.

    Raises ConfigError if the weight stays in high precision (the embedding, for example), or if the
    number of tiles does not divide a dimension.
    """
    G, R = quant.groups, quant.data_tiles
    if letters in ("DNH", "DF"):
        grid = R, G
    elif letters in ("NHD", "FD"):
        grid = G, R
    elif letters == "DKH":
        grid = (R, G) if shape[1] % G == 0 else (G * R, shape[1])
    else:
        raise ConfigError(
            f"a weight {letters} {tuple(shape)} cannot be quantized: embedding, head and norms "
            "stay in high precision (also a tied head); quantize only the projections of the "
            "blocks."
        )
    sizes = shape[0], shape[1] if letters[0] == "D" else shape[-1]
    for what, size, parts in zip(("inputs", "outputs"), sizes, grid, strict=True):
        if size % parts:
            raise ConfigError(
                f"the {what} of {letters} {tuple(shape)} cannot be split into {parts} tiles "
                f"(model.quant.groups {G}, data_tiles {R}): {size} is not a multiple of {parts}."
            )
    return grid


def check_mesh(quant: QuantConfig, mesh: Mapping[str, int]) -> None:
    """Raises ConfigError if the mesh would split a tile.

    One group, and one data tile, fit any mesh: their statistics are reduced over it.
    """
    if quant.groups == 1 and quant.data_tiles > 1 and mesh["model"] > 1:
        raise ConfigError(
            f"model.quant.data_tiles {quant.data_tiles} with model.quant.groups 1 requires "
            f"mesh.model 1, not {mesh['model']}: a tile would span several model shards; train "
            "with at least as many groups as model shards."
        )
    for field, parts, axis in (
        ("groups", quant.groups, "model"),
        ("data_tiles", quant.data_tiles, "data"),
    ):
        if parts > 1 and parts % mesh[axis]:
            raise ConfigError(
                f"mesh.{axis} {mesh[axis]} does not divide model.quant.{field} {parts}, which is "
                f"part of the model; choose a mesh.{axis} that divides it, or train with another "
                f"model.quant.{field}."
            )


def local_tiles(parts: int, place: Axis, mesh: Mapping[str, int]) -> int:
    """Number of a dimension's tiles on one device; also 1 if it holds part of the only tile."""
    return max(1, parts // shards(place, mesh))
