"""Regenerates the golden sharding tables: mesh axes and local shape of each parameter of a config.

    python -m tools.update_goldens      prints the files that changed; read their diff before commit

`tests/golden/` compares them. The sharding tables need neither JAX nor a device. The table of
collectives (PaLM 8B's train step as compiled for TPU) needs libtpu and takes about a minute;
without libtpu it is not updated.
"""

import importlib.metadata
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

from paxlike.accounting.parameters import stored_shapes
from paxlike.config import MeshConfig, load
from paxlike.files import write_file
from paxlike.parallel.sharding_table import sharding_rows

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests" / "golden"
TABLES = {
    "palm_540b": (2, 256, 12), "palm_62b": (1, 64, 8), "palm_8b": (1, 16, 4), "tiny": (1, 2, 4),
    "bitnet_tiny": (1, 2, 4), "bitnet_b158_tiny": (1, 2, 4), "bitnet_125m": (1, 2, 4),
    "bitnet_350m": (1, 2, 4), "bitnet_760m": (1, 2, 4), "bitnet_1_3b": (1, 2, 4),
    "bitnet_2_7b": (1, 8, 8), "bitnet_6_7b": (1, 8, 8), "gpt3_125m": (1, 4, 2),
    "gpt3_350m": (1, 4, 2), "gpt3_760m": (1, 4, 2), "gpt3_1_3b": (1, 4, 2), "gpt3_2_7b": (1, 8, 4),
    "gpt3_6_7b": (1, 16, 4), "gpt3_13b": (1, 32, 4), "gpt3_175b": (2, 64, 8),
    "adapt_lora": (1, 2, 4), "llama_70b": (1, 8, 8), "experts_tiny": (1, 2, 4),
    "mixtral_8x7b": (1, 8, 8), "jetmoe_8b": (1, 8, 8),
}  # fmt: skip
"""Config -> mesh (pod, data, model)."""


def path(name: str) -> Path:
    return GOLDENS / f"{name}_on_{'x'.join(map(str, TABLES[name]))}.txt"


def render(name: str) -> str:
    """Renders the table of a config in `configs/`, one line per parameter, padded with spaces."""
    model = load(ROOT / "configs" / f"{name}.py").model
    mesh = MeshConfig(*TABLES[name]).resolve(math.prod(TABLES[name]))
    lines = [("parameter", "shape", "mesh axes", "local shape")]
    for parameter, shape, places, local in sharding_rows(stored_shapes(model), mesh):
        axes = [
            "-" if place is None else "+".join([place] if isinstance(place, str) else place)
            for place in places
        ]
        lines.append((parameter, _product(shape), ", ".join(axes), _product(local)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join(
        [f"{name} on " + ", ".join(f"{axis} {size}" for axis, size in mesh.items()), "", *rows, ""]
    )


COLLECTIVES = GOLDENS / "palm_8b_on_v4_2x2x4.collectives"


def compile_collectives():
    """Compiles PaLM 8B for 16 chips, 4 x 4, with one sequence per data shard. Returns (config,
    Facts).

    The compiler's lowest optimization level takes a fifth of the time and sends the same bytes.
    """
    import dataclasses

    import jax

    from paxlike.planning.compile import compile_facts, lower
    from paxlike.planning.make_plan import prepare

    config = load(ROOT / "configs" / "palm_8b.py")
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, batch_size=4, batch_ramp=())
    )
    config, cluster = prepare(config, "v4:2x2x4", None)
    level = jax.config.values["jax_optimization_level"]
    jax.config.update("jax_optimization_level", "O0")
    try:
        return config, compile_facts(lower(config, cluster))
    finally:
        jax.config.update("jax_optimization_level", level)


def render_collectives(facts) -> str:
    """Renders one line per kind of collective: kind, mesh axis, inside the layer loop or not,
    dtype, bytes per device, times per step.
    """
    rows: dict[tuple, int] = {}
    for c in facts.all_collectives():
        key = (c.kind, c.axis, "layer loop" if c.in_loop else "once", c.dtype, c.payload)
        rows[key] = rows.get(key, 0) + c.times
    lines = [("kind", "axis", "where", "type", "bytes", "times")]
    lines += [
        (*map(str, key), str(times))
        for key, times in sorted(rows.items(), key=lambda row: (row[0][2], row[0]))
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    heading = (
        "palm_8b on v4:2x2x4, pod 1, data 4, model 4, remat attention, 4 x 2048 tokens, "
        f"libtpu {libtpu_version()}"
    )
    return "\n".join([heading, "", *cells, ""])


def libtpu_version() -> str:
    return importlib.metadata.version("libtpu")


def bytes_by_axis(table: str) -> dict[str, int]:
    """Returns axis -> total bytes of a table.

    An all-reduce counts twice, as a reduce-scatter and an all-gather.
    """
    totals: dict[str, int] = {}
    for kind, axis, *_, size, times in map(str.split, table.splitlines()[3:]):
        totals[axis] = totals.get(axis, 0) + int(size) * int(times) * (
            2 if kind == "all-reduce" else 1
        )
    return totals


def _product(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def main() -> None:
    tables = [(path(name), render(name)) for name in TABLES]
    if importlib.util.find_spec("libtpu"):
        tables.append((COLLECTIVES, render_collectives(compile_collectives()[1])))
    for file, text in tables:
        if not file.exists() or file.read_text() != text:
            write_file(file, text)
            print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
