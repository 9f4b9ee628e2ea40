"""How much communication the compiled train step hides, without and with paxlike's measures.

    python -m tools.bench.overlap [NAME ...]

"Without": the compiler's default options, and the stream gathered and scattered whole. Plans are
cached, so a second run is fast. Prints a Markdown table of docs/performance.md.
"""

import argparse
import dataclasses
from typing import NamedTuple

from paxlike.config import Config, load
from paxlike.parallel import runtime
from tools.bench import published


class Target(NamedTuple):
    name: str
    topology: str
    config: str
    """A config file, or the name of a run of `published`."""
    pods: int = 1
    model: int | None = None
    batch: int | None = None


TARGETS = (
    Target("PaLM 8B", "v4:4x4x4", "palm_8b", model=4, batch=64),
    Target("PaLM 8B", "v5p:4x4x4", "palm_8b", model=4, batch=64),
    Target("PaLM 8B", "h100:4x8", "palm_8b", model=1, batch=128),
    Target("PaLM 62B", "v4:8x8x8", "palm_62b", batch=512),
    Target("PaLM 540B", "v4:12x16x16", "palm_540b", pods=2, batch=2048),
    Target("Llama-3.1-8B", "v6e:16x16", "Llama-3.1-8B, 256 chips"),
    Target("Llama-3.1-70B", "v6e:16x16", "Llama-3.1-70B, 256 chips"),
)


def config_of(target: Target) -> Config:
    runs = {run.name: run for run in published.RUNS}
    if target.config in runs:
        return published.config_of(runs[target.config], 256)
    config = load(target.config)
    mesh = dataclasses.replace(config.mesh, pod=target.pods)
    if target.model:
        mesh = dataclasses.replace(mesh, model=target.model)
    train = dataclasses.replace(config.train, batch_size=target.batch, batch_ramp=())
    return dataclasses.replace(config, mesh=mesh, train=train)


def row(target: Target) -> dict:
    import jax

    from paxlike.planning.make_plan import plan, prepare

    config, made = prepare(config_of(target), target.topology, target.pods)
    result = plan(config, made)
    jax.clear_caches()
    seconds = result["predicted"]["seconds"]
    return {
        "hidden": seconds["hidden"] / seconds["links"],
        "over_device": seconds["step"] / seconds["device"],
        "step": seconds["step"],
        "mfu": result["predicted"]["mfu"],
        "needed": result["memory"]["needed"] / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="words in the name or topology")
    wanted = parser.parse_args().names
    runtime.start(1)
    print("| model | machine | link time hidden | step / device time | step, s | MFU | GiB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for target in TARGETS:
        title = f"{target.name} {target.topology}"
        if wanted and not any(word in title for word in wanted):
            continue
        with published.synchronous():
            before = row(target)
        after = row(target)
        pods = f"{target.pods} × " if target.pods > 1 else ""
        cells = (
            f"{before['hidden']:.1%} → {after['hidden']:.1%}",
            f"{before['over_device']:.3f} → {after['over_device']:.3f}",
            f"{before['step']:.3g} → {after['step']:.3g}",
            f"{before['mfu']:.1%} → {after['mfu']:.1%}",
            f"{before['needed']:.1f} → {after['needed']:.1f}",
        )
        print(f"| {target.name} | {pods}{target.topology} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
