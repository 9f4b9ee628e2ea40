"""Predicts published training runs: compiles each for its machine, and compares the prediction with what was measured there.

    python -m tools.bench.published [ROW ...]     compiles what is not cached, writes published.json (GPU rows: extra plan-gpu)
    python -m tools.bench.published --table       the table of docs/planning.md, from that file

What a source does not say is chosen here and marked: batch per chip, rematerialization, optimizer. The constants were set before any
prediction; of the 70B rows on v6e the batch, optimizer and number format are what fits, chosen after refusals and one prediction (-11.4 %).
"""

import dataclasses
import json
import statistics
import sys
from pathlib import Path

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

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FILE = HERE / "published.json"

SERIAL = {"block": "serial", "head": "untied"}
MAXTEXT_22B = ModelConfig(
    layers=48, d_model=6144, heads=24, kv_heads=24, head_dim=256, d_ff=24_576, vocab_size=32_000, feed_forward="gelu", **SERIAL
)  # fmt: skip
MAXTEXT_52B = ModelConfig(
    layers=32, d_model=12_288, heads=32, kv_heads=32, head_dim=256, d_ff=49_152, vocab_size=32_000, feed_forward="gelu", **SERIAL
)  # fmt: skip
LLAMA_7B = ModelConfig(
    layers=32, d_model=4096, heads=32, kv_heads=32, head_dim=128, d_ff=11_008, vocab_size=32_000, norm="rms", **SERIAL
)  # fmt: skip
LLAMA_8B = ModelConfig(
    layers=32, d_model=4096, heads=32, kv_heads=8, head_dim=128, d_ff=14_336, vocab_size=128_256, norm="rms", **SERIAL
)  # fmt: skip
LLAMA_70B = ModelConfig(
    layers=80, d_model=8192, heads=64, kv_heads=8, head_dim=128, d_ff=28_672, vocab_size=128_256, norm="rms", **SERIAL
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    topology: str
    published: float
    """MFU by the palm convention."""
    model: ModelConfig | str
    """Or the name of a config."""
    remat: str
    per_chip: float
    """Sequences."""
    length: int
    pods: int = 1
    lean: bool = False
    """Adafactor and bfloat16 parameters: what it takes to fit 32 chips of 32 GB."""
    chosen: str = ""
    """What the source does not say."""


LEAN = "batch, optimizer, bfloat16 parameters"
BOTH = "batch, remat"
RUNS = (
    Run("PaLM 540B, two pods", "v4:12x16x16", 0.462, "palm_540b", "palm", 1 / 3, 2048, 2),
    Run("PaLM 540B, one pod", "v4:12x16x16", 0.462 * 2 / 1.95, "palm_540b", "palm", 1 / 3, 2048),
    Run("MaxText 22B, 64 chips", "v4:4x4x4", 0.567, MAXTEXT_22B, "full", 13, 2048),
    Run("MaxText 22B, 2 slices", "v4:4x4x4", 0.553, MAXTEXT_22B, "full", 13, 2048, 2),
    Run("MaxText 22B, 4 slices", "v4:4x4x4", 0.543, MAXTEXT_22B, "full", 13, 2048, 4),
    Run("MaxText 22B, 8 slices", "v4:4x4x4", 0.532, MAXTEXT_22B, "full", 13, 2048, 8),
    Run("MaxText 52B, 192 chips", "v4:4x4x12", 0.560, MAXTEXT_52B, "full", 7, 2048),
    Run("MaxText 52B, 2 slices", "v4:4x4x12", 0.589, MAXTEXT_52B, "full", 7, 2048, 2),
    Run("Llama-3.1-8B, 8 chips", "v6e:2x4", 0.450, LLAMA_8B, "full", 2, 8192, chosen=BOTH),
    Run("Llama-3.1-8B, 16 chips", "v6e:4x4", 0.457, LLAMA_8B, "full", 2, 8192, chosen=BOTH),
    Run("Llama-3.1-8B, 256 chips", "v6e:16x16", 0.455, LLAMA_8B, "full", 2, 8192, chosen=BOTH),
    Run("Llama-3.1-70B, 32 chips", "v6e:4x8", 0.483, LLAMA_70B, "full", 1, 8192, lean=True, chosen=LEAN),
    Run("Llama-3.1-70B, 64 chips", "v6e:8x8", 0.460, LLAMA_70B, "full", 1, 8192, lean=True, chosen=LEAN),
    Run("Llama-3.1-70B, 128 chips", "v6e:8x16", 0.494, LLAMA_70B, "full", 1, 8192, lean=True, chosen=LEAN),
    Run("Llama-3.1-70B, 256 chips", "v6e:16x16", 0.504, LLAMA_70B, "full", 1, 8192, lean=True, chosen=LEAN),
    Run("Llama-2-7B, 8 x H100", "h100:1x8", 0.538, LLAMA_7B, "attention", 2, 4096),
    Run("Llama-3.1-70B, 256 x H200", "h200:32x8", 0.514, LLAMA_70B, "full", 2, 8192, chosen=BOTH),
)


def config_of(run: Run, chips: int) -> Config:
    batch = round(run.per_chip * chips)
    if isinstance(run.model, str):
        made = load(ROOT / "configs" / f"{run.model}.py")
        return dataclasses.replace(
            made, mesh=dataclasses.replace(made.mesh, pod=run.pods),
            train=dataclasses.replace(made.train, batch_size=batch, batch_ramp=()),
        )  # fmt: skip
    return Config(
        name="published",
        model=dataclasses.replace(run.model, remat=run.remat),
        data=DataConfig(sequence_length=run.length),
        optim=OptimConfig(name="adafactor" if run.lean else "adamw", schedule="constant"),
        train=TrainConfig(batch_size=batch, z_loss=0.0),
        mesh=MeshConfig(pod=run.pods),
        precision=PrecisionConfig(params="bfloat16" if run.lean else "float32", gradients="bfloat16"),
    )


def predict(run: Run) -> dict:
    """The plan of a run, its work and collectives left out."""
    import jax

    from paxlike.plan.topology import cluster
    from paxlike.plan.verb import plan, prepare

    chips = cluster(run.topology, run.pods).chips
    config, made = prepare(config_of(run, chips), run.topology, run.pods)
    told = plan(config, made)
    jax.clear_caches()
    return {
        "name": run.name, "topology": run.topology, "pods": run.pods, "published": run.published, "chosen": run.chosen,
        "predicted": told.get("predicted", {}).get("mfu"),
        "seconds": told.get("predicted", {}).get("seconds"), "hardware_over_model": told.get("flops", {}).get("hardware_over_model"),
        "refused": told["refused"], "versions": told["compile"]["versions"],
    }  # fmt: skip


def error(row: dict) -> float | None:
    return row["predicted"] / row["published"] - 1 if row["predicted"] else None


def table(rows: list[dict]) -> str:
    lines = [
        "| run | machine | published MFU | predicted | error | not published, chosen here |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        pods = f"{row['pods']} × " if row["pods"] > 1 else ""
        off = error(row)
        predicted = f"{row['predicted']:.1%} | {off:+.1%}" if off is not None else "does not fit | –"
        lines.append(
            f"| {row['name']} | {pods}{row['topology']} | {row['published']:.1%} | {predicted} | {row['chosen'] or '–'} |"
        )
    return "\n".join(lines).replace("%", " %") + "\n\n" + summary(rows)


def summary(rows: list[dict]) -> str:
    errors = [abs(error(row)) for row in rows if error(row) is not None]
    return f"Median error {statistics.median(errors):.1%}, largest {max(errors):.1%}.".replace("%", " %")


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
        except UserError as found:
            print(f"{run.name}: {found}", file=sys.stderr)
            continue
        off = error(row)
        print(
            run.name,
            row["refused"] or f"{row['predicted']:.3f} for {row['published']:.3f}: {off:+.1%} {row['seconds']}",
            flush=True,
        )
        write_file(FILE, json.dumps([rows[r.name] for r in RUNS if r.name in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
