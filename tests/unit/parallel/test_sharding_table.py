"""The sharding table: mesh axes and local shape of every parameter."""

import io

import pytest
from rich.console import Console

from paxlike.config import ConfigError
from paxlike.parallel.sharding_table import sharding_rows, sharding_table

MESH = {"pod": 2, "data": 4, "model": 8}
PARAMETERS = [
    ("embedding_VD", (256, 64)),
    ("blocks/wq_DNH", (3, 64, 16, 7)),
    ("blocks/wk_DKH", (3, 64, 1, 7)),
    ("blocks/scale_D", (3, 64)),
]


def text(table) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(table)
    return out.getvalue()


def test_rows():
    assert sharding_rows(PARAMETERS, MESH) == [
        ("embedding_VD", (256, 64), ("model", "data"), (32, 16)),
        ("blocks/wq_DNH", (3, 64, 16, 7), (None, "data", "model", None), (3, 16, 2, 7)),
        ("blocks/wk_DKH", (3, 64, 1, 7), (None, ("model", "data"), None, None), (3, 2, 1, 7)),
        ("blocks/scale_D", (3, 64), (None, "model"), (3, 8)),
    ]


def test_table():
    lines = text(sharding_table(PARAMETERS, MESH)).splitlines()
    assert lines[0].strip() == "Sharding on pod 2 x data 4 x model 8"
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert ["embedding_VD", "256 x 64", "vocab, embed", "model, data", "32 x 16 (1/32)"] in cells
    assert [
        "blocks/wk_DKH",
        "3 x 64 x 1 x 7",
        "layers, embed, heads, kv",
        "-, model and data, -, -",
        "3 x 2 x 1 x 7 (1/32)",
    ] in cells
    assert ["blocks/scale_D", "3 x 64", "layers, embed", "-, model", "3 x 8 (1/8)"] in cells


def test_a_parameter_that_does_not_fit():
    with pytest.raises(ConfigError, match=r"V \(vocabulary \(stored rows\)\) is 100"):
        sharding_table([("embedding_VD", (100, 64))], MESH)


def test_a_name_without_letters():
    with pytest.raises(ValueError, match="'blocks/bias' must end in '_'"):
        sharding_rows([("blocks/bias", (64,))], MESH)
