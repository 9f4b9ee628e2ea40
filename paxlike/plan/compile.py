"""The train step of a config, compiled for a cluster that is not here, and what the compiled program is: facts, as plain numbers.

It is the step that `paxlike train` runs (`train.step.Program`), with the state's and the batch's shapes and shardings in place of arrays.
"""

import dataclasses
import math
import re
import resource
import time
import warnings

import jax
import numpy as np

from paxlike.accounting.flops import attention_kernel_flops
from paxlike.accounting.hlo import parse
from paxlike.accounting.hlo_collectives import Collective, list_collectives
from paxlike.accounting.hlo_matmuls import count_matmuls
from paxlike.accounting.hlo_work import list_work
from paxlike.config import Config
from paxlike.nn.weight import Numerics
from paxlike.parallel.mesh import check_sharded, make_mesh
from paxlike.plan.topology import Cluster
from paxlike.train.state import abstract_state
from paxlike.train.step import Program, abstract_batch


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a compiler made of a config on a cluster. All bytes, FLOPs and seconds are of one device and one step."""

    mesh: dict[str, int]
    memory: dict[str, int]
    """Part -> bytes. Empty where the compiler refused the program."""
    needed: int
    """Bytes that the program takes at its peak; as far as the compiler told, where it refused."""
    refused: str
    """What the compiler said of a program that is too large, or nothing."""
    buffers: list[list]
    """[bytes, name, shape] of the largest arrays, where the compiler refused."""
    flops: int
    uncounted: list[str]
    work: list[list]
    """[runs, FLOPs, bytes, attention kernel?, beside other work?] of each instruction."""
    collectives: list[dict]
    windows: list[tuple[int, int] | None]
    """Which of the work each collective is under way during; None where the device waits for it."""
    seconds: float
    """Of lowering and compiling."""
    process_bytes: int
    """Largest resident size of the process that compiled."""

    def fits(self, usable: int | None) -> bool | None:
        """Whether the program fits on a device; None where nothing is known of its memory."""
        return False if self.refused else None if usable is None else self.needed <= usable

    def all_collectives(self) -> list[Collective]:
        return [Collective(**row) for row in self.collectives]


@dataclasses.dataclass
class Lowered:
    """The program before the compiler has seen it: what a plan's result is filed under, and all that it takes to compile it."""

    config: Config
    cluster: Cluster
    mesh: jax.sharding.Mesh
    numerics: Numerics
    stage: jax.stages.Lowered
    arguments: dict[str, int]
    """parameters, optimizer state, batch -> bytes on one device."""
    arrays: list[list]
    """[bytes, name, shape] of the state's arrays on one device."""
    seconds: float


def lower(config: Config, cluster: Cluster) -> Lowered:
    """Raises ConfigError where the config does not fit the cluster, MissingCompiler where there is none for it."""
    begin = time.monotonic()
    mesh = make_mesh(config.mesh, cluster.devices())
    numerics = Numerics.of(config.model, config.precision, cluster.platform)
    if cluster.platform == "gpu" and numerics.attention == "cudnn":
        numerics = dataclasses.replace(numerics, attention="stand_in")
    with jax.set_mesh(mesh):
        program = Program.of(config, numerics)
        state = abstract_state(config, numerics, program.optimizer)
        check_sharded(state)
        batch = abstract_batch(config, config.train.batch_size, segments=config.data.packing == "whole")
        stage = program.train_step.lower(state, batch)
    arguments = {
        "parameters": _bytes(state.params), "optimizer state": _bytes(state.optimizer), "batch": _bytes(batch),
    }  # fmt: skip
    return Lowered(config, cluster, mesh, numerics, stage, arguments, _arrays(state), time.monotonic() - begin)


def compile_facts(lowered: Lowered) -> Facts:
    """Compiles it, which takes up to minutes, and reads what came out. Raises the compiler's error, unless that is want of memory."""
    begin = time.monotonic()
    mesh = dict(lowered.mesh.shape)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = lowered.stage.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _refused(lowered, str(error), time.monotonic() - begin)
    text = compiled.as_text()
    module = parse(text)
    analysis = compiled.memory_analysis()
    memory = dict(lowered.arguments)
    memory["padding of them"] = max(0, analysis.argument_size_in_bytes - sum(memory.values()))
    memory["temporaries"] = analysis.temp_size_in_bytes
    memory["results beside the state"] = max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
    memory["code"] = analysis.generated_code_size_in_bytes
    # The peak: temporaries that do not live at one time are summed above, and may lie where donated arguments did.
    needed = analysis.peak_memory_in_bytes + memory["code"]
    matmuls = count_matmuls(module)
    listed, windows = list_work(module)
    work = [[w.times, w.flops, w.bytes, w.kernel, w.beside] for w in listed]
    collectives = list_collectives(module, mesh)
    flops = matmuls.total
    if lowered.numerics.attention == "stand_in":
        tokens = lowered.config.train.batch_size * lowered.config.data.sequence_length / lowered.mesh.size
        kernel = round(
            attention_kernel_flops(lowered.config.model, lowered.config.data.sequence_length, "cudnn") * tokens
        )
        work.append([1, kernel, 0, True, False])
        flops += kernel
    return Facts(
        mesh, memory, needed, "", [], flops, list(matmuls.uncounted), work,
        [dataclasses.asdict(c) for c in collectives], [windows.get(c.name) for c in collectives],
        lowered.seconds + time.monotonic() - begin, _resident(),
    )  # fmt: skip


def _refused(lowered: Lowered, message: str, seconds: float) -> Facts:
    needed, buffers = read_refusal(message)
    kept = [*buffers, *lowered.arrays] if buffers else [*lowered.arrays, *_kept(lowered)]
    kept = sorted(kept, key=lambda row: -row[0])[:12]
    return Facts(
        dict(lowered.mesh.shape), {}, needed, message.splitlines()[0], kept, 0, [], [], [], [], lowered.seconds + seconds, _resident()
    )  # fmt: skip


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def read_refusal(message: str) -> tuple[int, list[list]]:
    """(bytes needed, [bytes, name, shape] of the largest allocations) as the TPU compiler tells them when a program does not fit."""
    needed = re.search(r"Used ([\d.]+)([KMGT]?) of|\(([\d.]+)([KMGT]?)\) exceeds", message)
    number, unit = next(pair for pair in (needed.groups()[:2], needed.groups()[2:]) if pair[0]) if needed else ("0", "")
    listed = re.findall(
        r"Size: ([\d.]+)([KMGT]?)\s*\n(?:\s*Operator: op_name=\"(.*?)\"[^\n]*\n)?\s*Shape: (\S+)", message
    )
    buffers = [[int(float(size) * _UNITS[u]), _short(name) or "unnamed", shape] for size, u, name, shape in listed]
    return int(float(number) * _UNITS[unit]), buffers


def _short(op_name: str) -> str:
    """`jit(train_step)/jvp()/while/body/closed_call/shard_map/BTD,DF->BTF/dot_general` -> its end."""
    return "/".join(op_name.split("/")[-3:])


def _kept(lowered: Lowered) -> list[list]:
    """[bytes, name, shape] on one device of what the layers keep for the backward pass, where the compiler did not get as far as
    to list it: the arrays that the loop over the layers hands on, from the program before compilation."""
    layers = lowered.config.model.layers
    devices = lowered.mesh.size
    state = {tuple(n for n in shape) for _, _, shape in lowered.arrays}
    found: dict[tuple, int] = {}
    for loop in re.findall(r"stablehlo\.while\(.*?\) : (.*)", lowered.stage.as_text()):
        found_here: dict[tuple, int] = {}
        for dims, dtype in re.findall(r"tensor<((?:\d+x)+)(\w+)>", loop):
            shape = tuple(int(n) for n in dims.rstrip("x").split("x"))
            if shape[0] == layers and len(shape) > 3 and shape not in state:
                found_here[shape, dtype] = found_here.get((shape, dtype), 0) + 1
        for key, count in found_here.items():
            found[key] = max(found.get(key, 0), count)
    rows = []
    for (shape, dtype), count in found.items():
        width = {"bf16": 2, "f32": 4}.get(dtype, 4)
        rows.append(
            [
                count * math.prod(shape) * width // devices,
                f"{count} kept for the backward pass (shape over all devices)",
                list(shape),
            ]
        )
    return rows


def _bytes(tree: object) -> int:
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _arrays(tree: object) -> list[list]:
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shape = leaf.sharding.shard_shape(leaf.shape)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows.append([int(np.prod(shape)) * leaf.dtype.itemsize, name, list(shape)])
    return rows


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
