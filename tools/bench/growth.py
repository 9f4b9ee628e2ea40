"""How costs grow: compile time with layers and with devices, and the host's part of a step.

    python -m tools.bench.growth [--size test] [--json FILE]

Layers run in a loop (`jax.lax.scan`), so that a program of 64 is no larger than one of 4. Devices are fake, made of this machine's own.
Compiling is counted in CPU seconds of the process, tracing and lowering included; compiled programs are not taken from a cache.
"""

import dataclasses
import time

import jax
import numpy as np

from paxlike.config import Config, MeshConfig
from paxlike.parallel import runtime
from paxlike.parallel.mesh import make_mesh
from paxlike.train.state import abstract_state, make_state
from paxlike.train.step import Program, abstract_batch
from tools.bench import reference
from tools.bench.measure import Row, Taken, command, take_turns

FAKE_DEVICES = 16
MESHES = ((1, 1), (2, 1), (2, 2), (4, 2), (4, 4))
"""(data, model)."""
LAYERS = (2, 8, 32, 64)


def rows(size: str) -> list[Row]:
    """On the devices there are, of which MESHES needs 16."""
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    turns = 2 if size == "full" else 1
    try:
        _compile(reference.config("test"))  # What is done once in a process is not counted.
        return [*_with_layers(size, turns), *_with_devices(size, turns), *_dispatch(reference.config(size), size)]
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)


def _compile(config: Config, data: int = 1, model: int = 1) -> None:
    """Traces, lowers and compiles the train step anew."""
    with jax.set_mesh(make_mesh(MeshConfig(data=data, model=model), jax.devices()[: data * model])):
        program = Program.of(config, reference.numerics(config))
        state = abstract_state(config, program.numerics, program.optimizer)
        batch = abstract_batch(config, config.train.batch_size, segments=False)
        program.train_step.lower(state, batch).compile()


def _with_layers(size: str, turns: int) -> list[Row]:
    layers = LAYERS if size == "full" else LAYERS[:2]
    configs = {n: reference.config(size, layers=n) for n in layers}
    taken = take_turns({n: lambda config=config: _compile(config) for n, config in configs.items()}, turns, warm=0)
    first, last = layers[0], layers[-1]
    found = []
    for n in layers[1:]:
        goal, flat = ("flat", taken[n].cpu < 1.25 * taken[first].cpu) if n == last else ("", None)
        found.append(
            Row(f"compiling {n} layers", taken[n].cpu, "CPU s", f"{first} layers", taken[first].cpu, goal, flat)
        )
    return found


def _with_devices(size: str, turns: int) -> list[Row]:
    config = reference.config(size, heads=16) if size == "full" else reference.config(size)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=16))
    meshes = MESHES if size == "full" else MESHES[:3]
    taken = take_turns({mesh: lambda mesh=mesh: _compile(config, *mesh) for mesh in meshes}, turns, warm=0)
    alone = taken[1, 1].cpu
    return [
        Row(f"compiling for data {data} × model {model}", taken[data, model].cpu, "CPU s", "one device", alone)
        for data, model in meshes[1:]
    ]


def _dispatch(config: Config, size: str) -> list[Row]:
    """How long the call of a step keeps Python, beside the step: what is left is free for reading numbers and batches."""
    with jax.set_mesh(reference.one_device()):
        program = Program.of(config, reference.numerics(config))
        state = make_state(config, program.numerics, program.optimizer)
        shapes = abstract_batch(config, config.train.batch_size, segments=False)
        batch = jax.tree.map(lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding), shapes)
        compiled = program.train_step.lower(state, batch).compile()
        called, whole = Taken(), Taken()
        for _ in range(6 if size == "full" else 2):
            begin = time.perf_counter(), time.thread_time()
            state, numbers = compiled(state, batch)
            called.walls.append(time.perf_counter() - begin[0])
            called.cpus.append(time.thread_time() - begin[1])
            jax.block_until_ready((state, numbers))
            whole.walls.append(time.perf_counter() - begin[0])
    share = called.wall < 0.01 * whole.wall
    return [
        Row("the call of a step returns after", 1e3 * called.wall, "ms", "the step", 1e3 * whole.wall, "under 1 %", share),
        Row("CPU time of the calling thread", 1e3 * called.cpu, "ms", "the step", 1e3 * whole.wall),
    ]  # fmt: skip


if __name__ == "__main__":
    runtime.start(fake_devices=FAKE_DEVICES)
    command("Growth of cost", __doc__, rows)
