"""Predicts published training runs: compiles each for its machine and compares measured MFU.

    python -m tools.bench.published [ROW ...]   compiles all runs, or those whose names contain a
                                                ROW; writes published.json
    python -m tools.bench.published --table     prints the table of docs/planning.md from that file

GPU runs need the extra plan-gpu.

Settings that a source omits (batch per chip, rematerialization, optimizer) are chosen here and
marked. The constants were set before any prediction. For the 70B runs on v6e the batch, optimizer
and dtypes are those that fit, chosen after refusals and one prediction (-11.4 %).
"""

import contextlib
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from paxlike.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PrecisionConfig,
    TrainConfig,
    UserError,
    load,
)
from paxlike.files import write_file
from paxlike.parallel import runtime
from paxlike.training import compiler_options

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FILE = HERE / "published.json"

SERIAL = {"block": "serial", "head": "untied"}
MAXTEXT_22B = ModelConfig(
    layers=48,
    d_model=6144,
    heads=24,
    kv_heads=24,
    head_dim=256,
    d_ff=24_576,
    vocab_size=32_000,
    feed_forward="gelu",
    **SERIAL,
)
MAXTEXT_52B = ModelConfig(
    layers=32,
    d_model=12_288,
    heads=32,
    kv_heads=32,
    head_dim=256,
    d_ff=49_152,
    vocab_size=32_000,
    feed_forward="gelu",
    **SERIAL,
)
MAXTEXT_16B = ModelConfig(
    layers=32,
    d_model=4096,
    heads=64,
    kv_heads=64,
    head_dim=128,
    d_ff=28_672,
    vocab_size=32_000,
    norm="rms",
    **SERIAL,
)
MAXTEXT_32B = dataclasses.replace(MAXTEXT_16B, d_model=8192)
LLAMA_7B = ModelConfig(
    layers=32,
    d_model=4096,
    heads=32,
    kv_heads=32,
    head_dim=128,
    d_ff=11_008,
    vocab_size=32_000,
    norm="rms",
    **SERIAL,
)
LLAMA_8B = ModelConfig(
    layers=32,
    d_model=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    d_ff=14_336,
    vocab_size=128_256,
    norm="rms",
    **SERIAL,
)
LLAMA_70B = ModelConfig(
    layers=80,
    d_model=8192,
    heads=64,
    kv_heads=8,
    head_dim=128,
    d_ff=28_672,
    vocab_size=128_256,
    norm="rms",
    **SERIAL,
)


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    topology: str
    published: float
    """MFU by the palm convention."""
    model: ModelConfig | str
    """A ModelConfig, or the name of a config file."""
    remat: str
    per_chip: float
    """Sequences per chip and step."""
    length: int
    pods: int = 1
    lean: bool = False
    """Adafactor and bfloat16 parameters, which are needed to fit 32 chips of 32 GB."""
    synchronous: bool = False
    """The program of a run before asynchronous collectives and flash attention: see `predict`."""
    chosen: str = ""
    """Settings that the source omits."""


LEAN = "batch, *"
"""*: Adafactor and bfloat16 parameters, which make the run fit; see docs/planning.md."""
BOTH = "batch, remat"
EARLY = "attention, collectives"
RUNS = (
    Run(
        "PaLM 540B, two pods",
        "v4:12x16x16",
        0.462,
        "palm_540b",
        "palm",
        1 / 3,
        2048,
        2,
        synchronous=True,
        chosen=EARLY,
    ),
    Run(
        "PaLM 540B, one pod",
        "v4:12x16x16",
        0.462 * 2 / 1.95,
        "palm_540b",
        "palm",
        1 / 3,
        2048,
        synchronous=True,
        chosen=EARLY,
    ),
    Run("MaxText 22B, 64 chips", "v4:4x4x4", 0.567, MAXTEXT_22B, "full", 13, 2048),
    Run("MaxText 22B, 2 slices", "v4:4x4x4", 0.553, MAXTEXT_22B, "full", 13, 2048, 2),
    Run("MaxText 22B, 4 slices", "v4:4x4x4", 0.543, MAXTEXT_22B, "full", 13, 2048, 4),
    Run("MaxText 22B, 8 slices", "v4:4x4x4", 0.532, MAXTEXT_22B, "full", 13, 2048, 8),
    Run("MaxText 52B, 192 chips", "v4:4x4x12", 0.560, MAXTEXT_52B, "full", 7, 2048),
    Run("MaxText 52B, 2 slices", "v4:4x4x12", 0.589, MAXTEXT_52B, "full", 7, 2048, 2),
    Run("MaxText 16B, 256 chips", "v5e:16x16", 0.611, MAXTEXT_16B, "full", 6, 2048),
    Run("MaxText 32B, 256 chips", "v5e:16x16", 0.669, MAXTEXT_32B, "full", 4, 2048),
    Run("Llama-3.1-8B, 8 chips", "v6e:2x4", 0.450, LLAMA_8B, "full", 2, 8192, chosen=BOTH),
    Run("Llama-3.1-8B, 16 chips", "v6e:4x4", 0.457, LLAMA_8B, "full", 2, 8192, chosen=BOTH),
    Run("Llama-3.1-8B, 256 chips", "v6e:16x16", 0.455, LLAMA_8B, "full", 2, 8192, chosen=BOTH),
    Run(
        "Llama-3.1-70B, 32 chips",
        "v6e:4x8",
        0.483,
        LLAMA_70B,
        "full",
        1,
        8192,
        lean=True,
        chosen=LEAN,
    ),
    Run(
        "Llama-3.1-70B, 64 chips",
        "v6e:8x8",
        0.460,
        LLAMA_70B,
        "full",
        1,
        8192,
        lean=True,
        chosen=LEAN,
    ),
    Run(
        "Llama-3.1-70B, 128 chips",
        "v6e:8x16",
        0.494,
        LLAMA_70B,
        "full",
        1,
        8192,
        lean=True,
        chosen=LEAN,
    ),
    Run(
        "Llama-3.1-70B, 256 chips",
        "v6e:16x16",
        0.504,
        LLAMA_70B,
        "full",
        1,
        8192,
        lean=True,
        chosen=LEAN,
    ),
    Run("Llama-2-7B, 8 x H100", "h100:1x8", 0.538, LLAMA_7B, "attention", 2, 4096),
    Run("Llama-3.1-70B, 256 x H200", "h200:32x8", 0.514, LLAMA_70B, "full", 2, 8192, chosen=BOTH),
)


def config_of(run: Run, chips: int) -> Config:
    batch = round(run.per_chip * chips)
    if isinstance(run.model, str):
        config = load(ROOT / "configs" / f"{run.model}.py")
        attention = "reference" if run.synchronous else config.model.attention
        return dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, attention=attention),
            mesh=dataclasses.replace(config.mesh, pod=run.pods),
            train=dataclasses.replace(config.train, batch_size=batch, batch_ramp=()),
        )
    return Config(
        name="published",
        model=dataclasses.replace(run.model, remat=run.remat),
        data=DataConfig(sequence_length=run.length),
        optim=OptimConfig(name="adafactor" if run.lean else "adamw", schedule="constant"),
        train=TrainConfig(batch_size=batch, z_loss=0.0),
        mesh=MeshConfig(pod=run.pods),
        precision=PrecisionConfig(
            params="bfloat16" if run.lean else "float32", gradients="bfloat16"
        ),
    )


NOT_NAMED = (
    "xla_tpu_prefer_async_allgather_to_allreduce",
    "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter",
    "xla_tpu_sparse_core_reduce_scatter_latency_multiplier",
)
"""Options of paxlike that change these programs most, and that the runs' scripts do not set:
MaxText's of 2023 for v4 set asynchronous all-gathers alone (`configs/1xv4-128.sh`), and its list
of flags of 2024 does not have them (`benchmarks/xla_flags_library.py`)."""


@contextlib.contextmanager
def as_in_the_scripts() -> Iterator[None]:
    """Programs planned inside have all options of paxlike except `NOT_NAMED`."""
    options = tuple(o for o in compiler_options.OPTIONS if o.name not in NOT_NAMED)
    with mock.patch.object(compiler_options, "OPTIONS", options):
        yield


@contextlib.contextmanager
def synchronous() -> Iterator[None]:
    """Programs planned inside have the compiler's default options, and gather and scatter whole
    arrays: the device waits for almost every collective."""
    from paxlike.nn.numerics import Numerics

    of = Numerics.of
    whole = classmethod(lambda cls, *args: dataclasses.replace(of(*args), ring=False, ahead=False))
    with (
        mock.patch("paxlike.training.compiler_options.compiler_options", lambda kind: {}),
        mock.patch("paxlike.planning.cache.compiler_options", lambda kind: {}),
        mock.patch.object(Numerics, "of", whole),
    ):
        yield


def predict(run: Run) -> dict:
    """A summary of the plan of a run.

    The PaLM runs are of 2021 and 2022 (arXiv 2204.02311 is of April 2022). Flash attention (Dao et
    al., arXiv 2205.14135) was published after them, and so was hiding collectives behind the
    products that need them on TPUs (Wang et al., ASPLOS 2023); the paper describes neither. Their
    predictions are therefore of a program with plain attention and synchronous collectives. Those
    of the other runs are `as_in_the_scripts`.
    """
    import jax

    from paxlike.planning.make_plan import plan, prepare
    from paxlike.planning.topology import cluster

    chips = cluster(run.topology, run.pods).chips
    config, prepared = prepare(config_of(run, chips), run.topology, run.pods)
    with synchronous() if run.synchronous else as_in_the_scripts():
        result = plan(config, prepared)
    jax.clear_caches()
    predicted = result.get("predicted", {})
    return {
        "name": run.name,
        "topology": run.topology,
        "pods": run.pods,
        "published": run.published,
        "chosen": run.chosen,
        "predicted": predicted.get("mfu"),
        "seconds": predicted.get("seconds"),
        "hardware_over_model": result.get("flops", {}).get("hardware_over_model"),
        "refused": result["refused"],
        "versions": result["compile"]["versions"],
    }


def error(row: dict) -> float | None:
    """Relative error of the predicted MFU; None if the run does not fit."""
    return row["predicted"] / row["published"] - 1 if row["predicted"] else None


def table(rows: list[dict]) -> str:
    """The Markdown table of docs/planning.md."""
    lines = [
        "| run | machine | published MFU | predicted | error | chosen here |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        pods = f"{row['pods']} × " if row["pods"] > 1 else ""
        relative = error(row)
        predicted = (
            f"{row['predicted']:.1%} | {relative:+.1%}"
            if relative is not None
            else "does not fit | –"
        )
        lines.append(
            f"| {row['name']} | {pods}{row['topology']} | {row['published']:.1%} | {predicted} "
            f"| {row['chosen'] or '–'} |"
        )
    return "\n".join(lines).replace("%", " %") + "\n\n" + summary(rows)


def summary(rows: list[dict]) -> str:
    errors = [abs(error(row)) for row in rows if error(row) is not None]
    return f"Median error {statistics.median(errors):.1%}, largest {max(errors):.1%}.".replace(
        "%", " %"
    )


def main() -> None:
    rows = {row["name"]: row for row in json.loads(FILE.read_text())} if FILE.exists() else {}
    if sys.argv[1:] == ["--table"]:
        print(table([rows[run.name] for run in RUNS if run.name in rows]))
        return
    runtime.start(1)
    for run in RUNS:
        if sys.argv[1:] and not any(word in run.name for word in sys.argv[1:]):
            continue
        try:
            row = rows[run.name] = predict(run)
        except UserError as problem:
            print(f"{run.name}: {problem}", file=sys.stderr)
            continue
        outcome = row["refused"]
        if not outcome:
            mfus = f"{row['predicted']:.3f} for {row['published']:.3f}"
            outcome = f"{mfus}: {error(row):+.1%} {row['seconds']}"
        print(run.name, outcome, flush=True)
        write_file(
            FILE, json.dumps([rows[r.name] for r in RUNS if r.name in rows], indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
