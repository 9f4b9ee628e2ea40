"""Compiles a config's train step ahead of time for a cluster, and extracts facts as plain numbers.

It is the step that `paxlike train` runs (`training.step.Program`), with shapes and shardings of the
state and the batch instead of arrays.
"""

import dataclasses
import math
import re
import resource
import time
import warnings
from collections.abc import Mapping

import jax
import numpy as np

from paxlike.accounting.executed_flops import attention_kernel_flops
from paxlike.accounting.hlo import parse
from paxlike.accounting.hlo_collectives import Collective
from paxlike.accounting.hlo_matmuls import count_matmuls
from paxlike.accounting.hlo_schedule import read_schedule
from paxlike.accounting.hlo_work import Work
from paxlike.config import Config
from paxlike.nn.attention import STAND_IN
from paxlike.nn.numerics import Numerics
from paxlike.parallel.mesh import check_sharded, make_mesh
from paxlike.planning.topology import Cluster
from paxlike.training.compiler_options import compile_step
from paxlike.training.state import abstract_state
from paxlike.training.step import Program, abstract_batch


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts about the compiled program. All bytes, FLOPs and seconds are for one device and
    step.
    """

    mesh: dict[str, int]
    memory: dict[str, int]
    """Part -> bytes. Empty if the compiler rejected the program."""
    needed: int
    """Peak bytes of the program; if it was rejected, as far as the compiler reported them."""
    refused: str
    """The compiler's message about a program that is too large, or empty."""
    buffers: list[list]
    """[bytes, name, shape] of the largest arrays, if the compiler rejected the program."""
    flops: int
    uncounted: list[str]
    work: list[list]
    """The fields of `accounting.hlo_work.Work` of each instruction."""
    collectives: list[dict]
    """The fields of `accounting.hlo_collectives.Collective` of each."""
    items: list
    """The items of `accounting.hlo_schedule`."""
    seconds: float
    """Time of lowering and compiling."""
    process_bytes: int
    """Peak resident memory of the compiling process."""

    def fits(self, usable: int | None) -> bool | None:
        """Whether the program fits on a device; None if the device's memory is unknown."""
        return False if self.refused else None if usable is None else self.needed <= usable

    def all_work(self) -> list[Work]:
        return [Work(*row) for row in self.work]

    def all_collectives(self) -> list[Collective]:
        return [Collective(**row) for row in self.collectives]


@dataclasses.dataclass
class Lowered:
    """The program before compilation: the cache key of its facts, and everything to compile it."""

    config: Config
    cluster: Cluster
    mesh: jax.sharding.Mesh
    numerics: Numerics
    stage: jax.stages.Lowered
    arguments: dict[str, int]
    """parameters, optimizer state, batch and others -> bytes on one device."""
    arrays: list[list]
    """[bytes, name, shape] of the state's arrays on one device."""
    seconds: float
    options: Mapping[str, bool | str] = dataclasses.field(default_factory=dict)
    """Compiler options with other values than `training.compiler_options`."""

    @property
    def device_kind(self) -> str:
        return self.mesh.devices.flat[0].device_kind


def lower(config: Config, cluster: Cluster, whole: bool = False) -> Lowered:
    """Lowers the train step. whole: gathers the stream whole instead of in ring steps.

    Raises ConfigError if the config does not fit the cluster, and MissingCompiler if its compiler
    is not installed.
    """
    begin = time.monotonic()
    mesh = make_mesh(config.mesh, cluster.devices())
    numerics = Numerics.of_run(config, cluster.platform)
    if whole:
        numerics = dataclasses.replace(numerics, ring=False)
    if cluster.platform == "gpu" and numerics.attention == "cudnn":
        numerics = dataclasses.replace(numerics, attention="stand_in")
    with jax.set_mesh(mesh):
        program = Program.of(config, numerics)
        state = abstract_state(config, numerics, program.optimizer)
        check_sharded(state)
        batch = abstract_batch(
            config, config.train.batch_size, segments=config.data.packing == "whole"
        )
        stage = program.train_step.lower(state, batch)
    arguments = {
        "parameters": _bytes(state.params),
        **({"frozen parameters": _bytes(state.frozen)} if state.frozen else {}),
        "optimizer state": _bytes(state.optimizer),
        "batch": _bytes(batch),
    }
    return Lowered(
        config, cluster, mesh, numerics, stage, arguments, _arrays(state), time.monotonic() - begin
    )


def compile_facts(lowered: Lowered) -> Facts:
    """Compiles the program, which can take minutes, and extracts its facts.

    Raises the compiler's error unless it is a lack of memory.
    """
    begin = time.monotonic()
    mesh = dict(lowered.mesh.shape)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = compile_step(
                lowered.stage, lowered.device_kind, warnings.warn, lowered.options
            )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _refused(lowered, str(error), time.monotonic() - begin)
    module = parse(compiled.as_text() or "")
    analysis = compiled.memory_analysis()
    assert analysis is not None  # XLA reports it on every platform
    memory = dict(lowered.arguments)
    memory["padding of them"] = max(0, analysis.argument_size_in_bytes - sum(memory.values()))
    memory["temporaries"] = analysis.temp_size_in_bytes
    memory["results beside the state"] = max(
        0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    )
    memory["code"] = analysis.generated_code_size_in_bytes
    # The peak: temporaries that do not live at one time are summed above, and may lie where donated
    # arguments did.
    needed = analysis.peak_memory_in_bytes + memory["code"]
    matmuls = count_matmuls(module)
    schedule = read_schedule(module, mesh)
    work, flops = schedule.work, matmuls.total
    if lowered.numerics.attention == "stand_in":
        tokens = (
            lowered.config.train.batch_size
            * lowered.config.data.sequence_length
            / lowered.mesh.size
        )
        kernel = round(
            attention_kernel_flops(
                lowered.config.model, lowered.config.data.sequence_length, "cudnn"
            )
            * tokens
        )
        work = _with_kernel(work, kernel)
        flops += kernel
    return Facts(
        mesh, memory, needed, "", [], flops, list(matmuls.uncounted), [list(w) for w in work],
        [dataclasses.asdict(c) for c in schedule.collectives], schedule.items,
        lowered.seconds + time.monotonic() - begin, _resident(),
    )  # fmt: skip


def _with_kernel(work: list[Work], flops: int) -> list[Work]:
    """Adds the FLOPs of the attention kernel to the executions of its stand-in."""
    places = [i for i, w in enumerate(work) if STAND_IN in w.op_name]
    if not places:
        raise ValueError(f"no instruction of the compiled program is named {STAND_IN}.")
    runs = sum(work[i].times for i in places)
    changed = list(work)
    for i in places:
        changed[i] = work[i]._replace(flops=work[i].flops + flops // runs, kernel=True)
    return changed


def _refused(lowered: Lowered, message: str, seconds: float) -> Facts:
    needed, buffers = read_refusal(message)
    kept = [*buffers, *lowered.arrays] if buffers else [*lowered.arrays, *_kept(lowered)]
    kept = sorted(kept, key=lambda row: -row[0])[:12]
    return Facts(
        dict(lowered.mesh.shape),
        {},
        needed,
        message.splitlines()[0],
        kept,
        0,
        [],
        [],
        [],
        [],
        lowered.seconds + seconds,
        _resident(),
    )


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def read_refusal(message: str) -> tuple[int, list[list]]:
    """(bytes needed, [bytes, name, shape] of the largest allocations) from the TPU compiler's
    message about a program that does not fit.
    """
    needed = re.search(r"Used ([\d.]+)([KMGT]?) of|\(([\d.]+)([KMGT]?)\) exceeds", message)
    number, unit = (
        next(pair for pair in (needed.groups()[:2], needed.groups()[2:]) if pair[0])
        if needed
        else ("0", "")
    )
    listed = re.findall(
        r"Size: ([\d.]+)([KMGT]?)\s*\n(?:\s*Operator: op_name=\"(.*?)\"[^\n]*\n)?\s*Shape: (\S+)",
        message,
    )
    buffers = [
        [int(float(size) * _UNITS[u]), _short(name) or "unnamed", shape]
        for size, u, name, shape in listed
    ]
    return int(float(number) * _UNITS[unit]), buffers


def _short(op_name: str) -> str:
    """The last three parts of a name such as
    `jit(train_step)/while/body/BTD,DF->BTF/dot_general`.
    """
    return "/".join(op_name.split("/")[-3:])


def _kept(lowered: Lowered) -> list[list]:
    """[bytes, name, shape] on one device of the arrays that the layers save for the backward pass.

    Read from the loop over the layers before compilation, because the compiler lists them only in
    part when it rejects a program.
    """
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
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _arrays(tree: object) -> list[list]:
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shape = leaf.sharding.shard_shape(leaf.shape)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows.append([int(np.prod(shape)) * leaf.dtype.itemsize, name, list(shape)])
    return rows


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
