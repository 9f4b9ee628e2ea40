"""Compares ways to adapt one base: loss, trained parameters, speed, memory, checkpoint bytes.

    python -m tools.bench.adapting            prints the table of docs/adapting.md
    python -m tools.bench.adapting --steps 8 --seeds 1    a trial
    python -m tools.bench.adapting --seeds 0              only the times of steps

The base is `configs/tiny.py`, trained on the default corpus (Python source). It is adapted to the
English text of docs/: each paragraph is a prompt, its first third, and a completion, which is
predicted. Every way has its own learning rate and the same steps, batches and seeds. Steps are
timed apart from that: all ways take turns in one process, and the shortest of their times counts,
so that other work on the machine slows none more than another.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

from paxlike.config import AdaptConfig, Config, InitConfig, OptimConfig, load

ROOT = Path(__file__).resolve().parents[2]


def lora(rank: int, **more) -> AdaptConfig:
    return AdaptConfig("lora", rank=rank, alpha=2.0 * rank, **more)


def prefix(hidden: int, **more) -> AdaptConfig:
    return AdaptConfig("prefix", prefix_length=PROMPT_TOKENS, prefix_hidden=hidden, **more)


PROMPT = "A paragraph of the documentation, in plain American English"
PROMPT_TOKENS = 25
"""Of the prompt, with the tokenizer that is trained on the default corpus (Python 3.11)."""

WAYS: dict[str, tuple[AdaptConfig, float]] = {
    "full fine-tuning": (AdaptConfig(), 3e-3),
    "LoRA, rank 2": (lora(2), 1.5e-2),
    "LoRA, rank 8": (lora(8), 1.5e-2),
    "LoRA, rank 32": (lora(32), 1.5e-2),
    "rsLoRA, rank 32": (AdaptConfig("lora", rank=32, alpha=8.0, rank_stabilized=True), 1.5e-2),
    "prefix, random": (prefix(0), 5e-2),
    "prefix, network": (prefix(128), 5e-3),
    "prefix, start from a text": (prefix(0, prefix_prompt=PROMPT), 5e-2),
    "LoReFT, rank 4": (AdaptConfig("reft", rank=4, positions="f4+l4", tied=False), 2e-2),
    "singular values": (AdaptConfig("singular"), 3e-2),
}
"""Name -> (what is trained, peak learning rate)."""


def base_config() -> Config:
    config = load(ROOT / "configs" / "tiny.py")
    quiet = dataclasses.replace(config.log, tensorboard=False, every=50, sample="")
    return dataclasses.replace(config, log=quiet)


def adapting_config(base: Path, store: Path, way: str, seed: int, steps: int) -> Config:
    adapt, rate = WAYS[way]
    config = base_config()
    optim = OptimConfig("adamw", rate, "cosine", warmup_steps=5, beta2=0.95)
    return dataclasses.replace(
        config,
        adapt=adapt,
        init=InitConfig(str(base)),
        optim=optim,
        data=dataclasses.replace(config.data, store=str(store), packing="whole", seed=seed),
        train=dataclasses.replace(config.train, steps=steps, batch_size=4, seed=seed),
        checkpoint=dataclasses.replace(config.checkpoint, every=steps),
        eval=dataclasses.replace(config.eval, every=0, batches=8),
    )


def prepare_text(base: Path, folder: Path) -> Path:
    """A token store of the paragraphs of docs/ with the base's tokenizer."""
    from paxlike.data.prepare import PrepareConfig, prepare

    records = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        for paragraph in path.read_text().split("\n\n"):
            words = paragraph.split()
            if len(words) >= 24 and not paragraph.startswith(("|", "    ", "#")):
                cut = len(words) // 3
                prompt, rest = " ".join(words[:cut]), " " + " ".join(words[cut:])
                records.append(json.dumps({"prompt": prompt, "completion": rest}))
    (folder / "text.jsonl").write_text("\n".join(records) + "\n")
    prepare(
        PrepareConfig(
            (str(folder / "text.jsonl"),),
            str(folder / "text"),
            format="prompt-completion",
            tokenizer=str(base),
            sequence_length=base_config().data.sequence_length,
            validation_fraction=0.2,
        )
    )
    return folder / "text"


def run(config: Config, folder: Path) -> dict:
    """Trains once, and measures."""
    from paxlike.interop.init_sources import open_initial
    from paxlike.training.loop import train

    config, source = open_initial(config, folder, frozenset())
    result = train(config, folder, source)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    memory = next(line["memory"] for line in lines if line.get("event") == "compile")
    checkpoint = folder / "checkpoints" / str(result.step)
    assert result.evaluation is not None
    return {
        "loss": result.evaluation["loss"],
        "trained": sum(leaf.size for leaf in _leaves(result.state.params)),
        "bytes": sum(p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()),
        "peak": memory["arguments"] + memory["outputs"] + memory["temporaries"] - memory["aliased"],
    }


def _leaves(tree: dict) -> list:
    import jax

    return jax.tree.leaves(tree)


def step_seconds(rounds: int) -> dict[str, float]:
    """The shortest time of a train step of every way, on random data and parameters."""
    import jax
    import numpy as np

    from paxlike.data.batch import Batch
    from paxlike.nn.numerics import Numerics
    from paxlike.parallel.host_batches import local_rows
    from paxlike.parallel.mesh import make_mesh
    from paxlike.training.state import make_state
    from paxlike.training.step import Program, on_mesh

    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with jax.set_mesh(make_mesh(base_config().mesh)):
        running = {}
        for way in WAYS:
            config = adapting_config(Path(), Path(), way, 0, 10)
            numerics = Numerics.of_run(config, jax.default_backend())
            program = Program.of(config, numerics)
            shape = (config.train.batch_size, config.data.sequence_length)
            tokens = np.random.default_rng(0).integers(0, 2000, shape, dtype=np.int32)
            batch = on_mesh(Batch(tokens, tokens, None), local_rows(shape[0], 1), shape[0], 1)
            running[way] = program, make_state(config, numerics, program.optimizer), batch
        for _ in range(rounds):
            for way, (program, state, batch) in running.items():
                begin = time.perf_counter()
                state, metrics = jax.block_until_ready(program.train_step(state, batch))
                found[way].append(time.perf_counter() - begin)
                running[way] = program, state, batch
    return {way: min(seconds[1:]) for way, seconds in found.items()}


def table(rows: dict[str, list[dict]], seconds: dict[str, float]) -> str:
    """Markdown. Ratios are to full fine-tuning."""
    full = rows["full fine-tuning"]

    def median(way: str, field: str) -> float:
        return statistics.median(row[field] for row in rows[way])

    lines = [
        "| | loss (3 seeds) | trained | s/step | of full | peak MiB | of full | checkpoint MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, found in rows.items():
        losses = ", ".join(f"{row['loss']:.3f}" for row in found)
        peak = median(way, "peak")
        lines.append(
            f"| {way} | {losses} | {found[0]['trained']:,} | {seconds[way]:.3f} "
            f"| {seconds[way] / seconds['full fine-tuning']:.2f} "
            f"| {peak / 2**20:.1f} | {peak / full[0]['peak']:.2f} "
            f"| {found[0]['bytes'] / 1e6:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--base", type=Path, help="a run of configs/tiny.py; default: train one")
    arguments = parser.parse_args()
    from paxlike.parallel import runtime
    from paxlike.training.loop import train

    runtime.start()
    if not arguments.seeds:
        print(step_seconds(rounds=25))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = arguments.base
        if base is None:
            base = folder / "base"
            train(base_config(), base)
        store = prepare_text(base, folder)
        rows: dict[str, list[dict]] = {way: [] for way in WAYS}
        # Ways take turns, so that another load of the machine meets all of them.
        for seed in range(arguments.seeds):
            for number, way in enumerate(WAYS):
                config = adapting_config(base, store, way, seed, arguments.steps)
                rows[way].append(run(config, folder / f"{number}-{seed}"))
        print(f"\n{platform.machine()}, {date.today()}, {arguments.steps} steps")
        print(table(rows, step_seconds(rounds=25)))


if __name__ == "__main__":
    main()
