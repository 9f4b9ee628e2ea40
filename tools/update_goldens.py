"""Writes the golden sharding tables anew: where every parameter of a config lies on its mesh, and what a device holds of it.

    python -m tools.update_goldens      prints the files that changed; read their diff before it is committed

`tests/golden/test_sharding_goldens.py` compares them. Nothing here needs JAX or a device.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from paxlike.accounting.parameters import stored_shapes
from paxlike.config import load
from paxlike.parallel.rules import MESH_AXES
from paxlike.parallel.table import sharding_rows

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests" / "golden"
TABLES = {
    "palm_540b": (2, 256, 12), "palm_62b": (1, 64, 8), "palm_8b": (1, 16, 4), "tiny": (1, 2, 4), "bitnet_tiny": (1, 2, 4),
    "bitnet_b158_tiny": (1, 2, 4), "bitnet_125m": (1, 2, 4), "bitnet_350m": (1, 2, 4), "bitnet_760m": (1, 2, 4),
    "bitnet_1_3b": (1, 2, 4), "bitnet_2_7b": (1, 8, 8), "bitnet_6_7b": (1, 8, 8),
}  # fmt: skip
"""Config -> its mesh: pod, data, model."""


def path(name: str) -> Path:
    return GOLDENS / f"{name}_on_{'x'.join(map(str, TABLES[name]))}.txt"


def render(name: str) -> str:
    """The table of a config in `configs/`: a line each parameter, columns padded with spaces."""
    model = load(ROOT / "configs" / f"{name}.py").model
    mesh = dict(zip(MESH_AXES, TABLES[name], strict=True))
    lines = [("parameter", "shape", "lies on", "on a device")]
    for parameter, shape, places, local in sharding_rows(stored_shapes(model), mesh):
        lies = ["-" if place is None else "+".join([place] if isinstance(place, str) else place) for place in places]
        lines.append((parameter, _product(shape), ", ".join(lies), _product(local)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join([f"{name} on " + ", ".join(f"{axis} {size}" for axis, size in mesh.items()), "", *rows, ""])


def _product(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def main() -> None:
    for name in TABLES:
        file, text = path(name), render(name)
        if not file.exists() or file.read_text() != text:
            partial = file.with_suffix(".partial")
            partial.write_text(text)
            os.replace(partial, file)
            print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
