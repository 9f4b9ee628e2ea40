"""Trains a mixture of depths and its dense twin with equal FLOPs on the default corpus.

    python -m tools.bench.depths                 prints the tables of docs/depths.md
    python -m tools.bench.depths --size test     a smoke test

Three models get the FLOPs that the dense one executes in its steps: the dense twin, the same model
with every other block routed, for more steps, and a deeper routed model with about the twin's FLOPs
per token. They share the learning rate, which was chosen for dense models (configs/tiny.py), and
each decays it over its own steps. The loss is that of the validation split after the last step;
where blocks are routed, by the router and by the predictor. Seconds are those of train steps on
random tokens, of which the models take turns.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path

import jax

from paxlike.accounting.adapted_flops import executed
from paxlike.accounting.parameters import parameter_count
from paxlike.config import CheckpointConfig, Config, EvalConfig, LogConfig, MeshConfig, load
from paxlike.parallel.mesh import make_mesh
from paxlike.training.loop import train
from tools.bench.experts import train_step_of
from tools.bench.measure import interleave, machine, write

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.py"
ROUTED = ("parallel", "parallel_routed")
SEEDS, STEPS, EVALUATED = (0, 1, 2), 200, 32
TURNS = 7


def configs(size: str) -> dict[str, Config]:
    """The models by name; the dense one is the first."""
    tiny = load(TINY)
    shape = {"layers": 6, "d_model": 64, "heads": 4, "head_dim": 16, "d_ff": 256}
    steps = STEPS if size == "full" else 4
    base = dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, **shape),
        data=dataclasses.replace(tiny.data, sequence_length=128),
        train=dataclasses.replace(tiny.train, steps=steps),
        optim=dataclasses.replace(tiny.optim, warmup_steps=min(tiny.optim.warmup_steps, steps - 1)),
        eval=EvalConfig(every=0, batches=EVALUATED if size == "full" else 1),
        checkpoint=CheckpointConfig(every=10**6),
        log=LogConfig(every=steps),
    )

    def with_layers(layers: int) -> Config:
        model = dataclasses.replace(base.model, layers=layers, pattern=ROUTED)
        routed = dataclasses.replace(base, model=model)
        # As many FLOPs as the dense model, in a whole number of steps.
        share = executed(base, "blocked").total / executed(routed, "blocked").total
        schedule = dataclasses.replace(base.train, steps=round(steps * share))
        return dataclasses.replace(routed, train=schedule)

    return {
        "dense, 6 layers": base,
        "routed, 6 layers": with_layers(6),
        "routed, 10 layers": with_layers(10),
    }


def trained(config: Config, seed: int) -> dict[str, float]:
    """The evaluation at the end, and the predictor's accuracy in the last step."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, Path(folder) / "run")
        lines = map(json.loads, (Path(folder) / "run/metrics.jsonl").read_text().splitlines())
        last = [line for line in lines if "event" not in line][-1]
    assert result.evaluation is not None
    names = ("predictor_accuracy", "predictor_tokens")
    return {**result.evaluation, **{name: last[name] for name in names if name in last}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("full", "test"), default="full")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    flags = parser.parse_args()
    models = configs(flags.size)
    with tempfile.TemporaryDirectory() as compiled:  # seeds share their programs
        jax.config.update("jax_compilation_cache_dir", compiled)
        results = measure(models, flags.size)
    print(table(results["models"]))
    if flags.json:
        write(flags.json, json.dumps(results, indent=2) + "\n")


def measure(models: dict[str, Config], size: str) -> dict:
    """What the JSON file has."""
    seeds = SEEDS if size == "full" else SEEDS[:1]
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        steps = {
            name: train_step_of(c.model, c.train.batch_size, c.data.sequence_length)
            for name, c in models.items()
        }
        times = interleave(steps, TURNS if size == "full" else 1)
    del steps
    found = {}
    for name, config in models.items():
        found[name] = {
            "parameters": parameter_count(config.model),
            "flops_per_token": executed(config, "blocked").total,
            "steps": config.train.steps,
            "step_seconds": times[name].wall,
            "step_cpu_seconds": times[name].cpu,
            "evaluations": [trained(config, seed) for seed in seeds],
        }
    return {"machine": machine(), "seeds": seeds, "models": found}


def table(found: dict) -> str:
    """The results as Markdown: means over the seeds, and the least and the greatest value."""
    lines = [
        "| model | parameters | MFLOP a token | steps | loss | loss by the predictor | "
        "predictor agrees | s a step | CPU s a step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        cells = [name, f"{one['parameters'] / 1e6:.2f} M", f"{one['flops_per_token'] / 1e6:.1f}"]
        cells.append(str(one["steps"]))
        for key, form in (
            ("loss", "{:.3f}"), ("loss_by_predictor", "{:.3f}"), ("predictor_accuracy", "{:.1%}")
        ):  # fmt: skip
            values = [e[key] for e in one["evaluations"] if key in e]
            words = "" if not values else form.format(statistics.mean(values))
            if len(values) > 1:
                words += f" ({form.format(min(values))} to {form.format(max(values))})"
            cells.append(words)
        cells += [f"{one['step_seconds']:.3f}", f"{one['step_cpu_seconds']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
