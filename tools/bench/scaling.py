"""How costs scale: compile time by layers and by devices, and the host's share of a step.

    python -m tools.bench.scaling [--size test] [--json FILE]

Layers run in a loop (`jax.lax.scan`), so a program of 64 layers is no larger than one of 4. Devices
are fake, all on this machine. Compile time is the CPU seconds of the process, tracing and lowering
included, with the compilation cache disabled.
"""

import dataclasses
import time

import jax
import numpy as np

from paxlike.config import Config, MeshConfig
from paxlike.parallel import runtime
from paxlike.parallel.mesh import make_mesh
from paxlike.training.state import abstract_state, make_state
from paxlike.training.step import Program, abstract_batch
from tools.bench import reference
from tools.bench.measure import Row, Timings, command_line, interleave

FAKE_DEVICES = 16
MESHES = ((1, 1), (2, 1), (2, 2), (4, 2), (4, 4))
"""(data, model)."""
LAYERS = (2, 8, 32, 64)


def rows(size: str) -> list[Row]:
    """Runs on the devices of this process, of which MESHES needs 16."""
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    turns = 2 if size == "full" else 1
    try:
        _compile(reference.config("test"))  # Excludes one-time costs of the process.
        return [
            *_by_layers(size, turns),
            *_by_devices(size, turns),
            *_dispatch(reference.config(size), size),
        ]
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)


def _compile(config: Config, data: int = 1, model: int = 1) -> None:
    """Traces, lowers and compiles the train step from scratch."""
    with jax.set_mesh(make_mesh(MeshConfig(data=data, model=model), jax.devices()[: data * model])):
        program = Program.of(config, reference.numerics(config))
        state = abstract_state(config, program.numerics, program.optimizer)
        batch = abstract_batch(config, config.train.batch_size, segments=False)
        program.train_step.lower(state, batch).compile()


def _by_layers(size: str, turns: int) -> list[Row]:
    layers = LAYERS if size == "full" else LAYERS[:2]
    configs = {n: reference.config(size, layers=n) for n in layers}
    timings = interleave(
        {n: lambda config=config: _compile(config) for n, config in configs.items()},
        turns,
        warmup=0,
    )
    first, last = layers[0], layers[-1]
    baseline = timings[first].cpu
    results = []
    for n in layers[1:]:
        cpu = timings[n].cpu
        goal, flat = ("flat", cpu < 1.25 * baseline) if n == last else ("", None)
        results.append(
            Row(f"compiling {n} layers", cpu, "CPU s", f"{first} layers", baseline, goal, flat)
        )
    return results


def _by_devices(size: str, turns: int) -> list[Row]:
    config = reference.config(size, heads=16) if size == "full" else reference.config(size)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=16))
    meshes = MESHES if size == "full" else MESHES[:3]
    timings = interleave(
        {mesh: lambda mesh=mesh: _compile(config, *mesh) for mesh in meshes}, turns, warmup=0
    )
    return [
        Row(
            f"compiling for data {data} × model {model}",
            timings[data, model].cpu,
            "CPU s",
            "one device",
            timings[1, 1].cpu,
        )
        for data, model in meshes[1:]
    ]


def _dispatch(config: Config, size: str) -> list[Row]:
    """How long calling a step occupies Python, compared with the step.

    The rest of the step is available for reading metrics and batches.
    """
    with jax.set_mesh(reference.one_device()):
        program = Program.of(config, reference.numerics(config))
        state = make_state(config, program.numerics, program.optimizer)
        shapes = abstract_batch(config, config.train.batch_size, segments=False)
        batch = jax.tree.map(
            lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding), shapes
        )
        compiled = program.train_step.lower(state, batch).compile()
        call, step = Timings(), Timings()
        for _ in range(6 if size == "full" else 2):
            begin = time.perf_counter(), time.thread_time()
            state, metrics = compiled(state, batch)
            call.wall_times.append(time.perf_counter() - begin[0])
            call.cpu_times.append(time.thread_time() - begin[1])
            jax.block_until_ready((state, metrics))
            step.wall_times.append(time.perf_counter() - begin[0])
    step_ms = 1e3 * step.wall
    reached = call.wall < 0.01 * step.wall
    return [
        Row(
            "the call of a step returns after",
            1e3 * call.wall,
            "ms",
            "the step",
            step_ms,
            "under 1 %",
            reached,
        ),
        Row("CPU time of the calling thread", 1e3 * call.cpu, "ms", "the step", step_ms),
    ]


if __name__ == "__main__":
    runtime.start(fake_devices=FAKE_DEVICES)
    command_line("Scaling of costs", __doc__, rows)
