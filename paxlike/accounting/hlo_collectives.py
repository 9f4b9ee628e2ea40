"""Lists the collectives of a compiled program: their bytes, mesh axis and number of executions.

    for row in list_collectives(compiled.as_text(), {"pod": 1, "data": 4, "model": 2}): ...

Each collective is counted once, at its start. The forms of a collective:

- one instruction, for which the device waits (`all-gather`);
- a start and a done (`collective-permute-start`), or an `async-start` that wraps the collective. On
  a TPU's SparseCore it is a `call-start`;
- on TPU, a fusion `AsyncCollectiveStart` and a fusion `AsyncCollectiveDone`. Fusions in between can
  repeat the collective next to a matrix product: they advance it while they compute;
- on TPU, a fusion `all-reduce-scatter` of an all-reduce and a slice: a reduce-scatter;
- between TPU slices (`pod`), a transfer over the host network (Megascale). It is listed as the
  collective that it implements, such as `all-reduce`, over the axis `pod`.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping

from paxlike.accounting.hlo import Computation, Instruction, Module, Shape, parse
from paxlike.accounting.hlo_groups import distance, mesh_axes, replica_groups
from paxlike.accounting.hlo_walk import Visit, fused, walk

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_OPCODES = {kind + suffix: kind for kind in KINDS for suffix in ("", "-start")}


@dataclasses.dataclass(frozen=True)
class Collective:
    kind: str
    axis: str
    """Mesh axes, joined by `+` (`data+model`). Starts with `part of` if a group has only some of
    the axis's devices."""
    group_size: int
    dtype: str
    operand_bytes: int
    """Input of one device, in one execution."""
    result_bytes: int
    """Output of one device, in one execution."""
    times: int
    """Number of executions in one run of the program."""
    in_loop: bool
    name: str
    op_name: str
    alone: bool = True
    """Whether it is synchronous: the device waits for it."""
    shift: int = 0
    """Of a permutation by one distance along an axis: this distance. Otherwise 0."""
    block: int = 0
    """Of a shift: the number of devices after which it wraps around, the axis or a part of it."""
    channel: str = ""
    """XLA's channel, which is the same in all instructions of a collective."""

    @property
    def payload(self) -> int:
        """Bytes of the whole array on one device: the gathered result, or the array to reduce."""
        return max(self.operand_bytes, self.result_bytes)

    @property
    def sent_bytes(self) -> int:
        """Bytes that one device sends in one execution, by the ring algorithm.

        An all-reduce counts as a reduce-scatter and an all-gather.
        """
        share = (self.group_size - 1) / self.group_size
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.operand_bytes
        return round(self.payload * share * (2 if self.kind == "all-reduce" else 1))


@dataclasses.dataclass(frozen=True)
class Row:
    """Sum of all collectives of one kind over one axis."""

    kind: str
    axis: str
    in_loop: bool
    times: int
    """Executions per step."""
    payload: int
    """Bytes per step on one device."""
    sent_bytes: int
    """Bytes per step sent by one device."""


def summarize(collectives: Iterable[Collective]) -> list[Row]:
    """Sums by kind, axis and whether in a loop. The rows with the most sent bytes come first."""
    rows: dict[tuple[str, str, bool], list[Collective]] = {}
    for c in collectives:
        rows.setdefault((c.kind, c.axis, c.in_loop), []).append(c)
    sums = [
        Row(
            *key,
            sum(c.times for c in group),
            sum(c.times * c.payload for c in group),
            sum(c.times * c.sent_bytes for c in group),
        )
        for key, group in rows.items()
    ]
    return sorted(sums, key=lambda row: -row.sent_bytes)


def added(collectives: Iterable[Collective], baseline: Iterable[Collective]) -> list[Row]:
    """Returns the communication that a program has in addition to a baseline, by kind and axis.

    Savings in one row do not offset additions in another. Rows sum bytes, because the compiler may
    combine collectives. The list is empty if nothing is added.
    """
    old_rows = {(row.kind, row.axis, row.in_loop): row for row in summarize(baseline)}
    more = []
    for row in summarize(collectives):
        old = old_rows.get((row.kind, row.axis, row.in_loop))
        if old is None:
            more.append(row)
        elif row.payload > old.payload:
            times, payload, sent = (
                getattr(row, n) - getattr(old, n) for n in ("times", "payload", "sent_bytes")
            )
            more.append(
                dataclasses.replace(
                    row, times=max(0, times), payload=payload, sent_bytes=max(0, sent)
                )
            )
    return more


def list_collectives(text: str | Module, mesh: Mapping[str, int]) -> list[Collective]:
    """Lists all collectives in HLO text, except over groups of one device.

    mesh: axis -> size, major first. A program from `jax.jit` numbers devices in the mesh's order.
    """
    module = parse(text) if isinstance(text, str) else text
    reader = CollectiveReader(module, mesh)
    return [found for visit in walk(module, fusions=False) for found in reader.started(visit)]


class CollectiveReader:
    """Reads the collectives that the instructions of a module start."""

    def __init__(self, module: Module, mesh: Mapping[str, int]):
        self._module, self._mesh = module, mesh
        self._places = dict(enumerate(itertools.product(*(range(n) for n in mesh.values()))))
        self._asynchronous = {
            (inner.opcode, inner.attribute("channel_id"))
            for computation in module.computations.values()
            if _calls_target(computation, "AsyncCollectiveStart")
            for inner in computation.instructions.values()
            if inner.opcode in KINDS
        }

    def started(self, visit: Visit) -> list[Collective]:
        """Returns the collectives that start with an instruction at the top level."""
        inner = fused(self._module, visit.instruction)
        if inner is None:
            found = self._read(visit, "")
            return [found] if found else []
        if visit.instruction.opcode not in ("async-start", "fusion", "call-start"):
            return []
        form = fusion_form(inner)
        if form == "AsyncCollectiveDone":
            return []
        listed = []
        for v in walk(Module(self._module.computations, inner)):
            same = v.instruction.opcode, v.instruction.attribute("channel_id")
            if same in self._asynchronous and not form:
                continue  # the fusion advances a collective that is counted at its start
            outer = Visit(v.instruction, v.computation, visit.times * v.times, visit.loops)
            if found := self._read(outer, form or visit.instruction.opcode):
                listed.append(found)
        return listed

    def _read(self, visit: Visit, form: str) -> Collective | None:
        """Returns the collective of an instruction, if it is one over more than one device.

        form: of the fusion or wrapper around it, or empty.
        """
        instruction, computation, times, loops = visit
        if instruction.opcode in _OPCODES:
            kind = _OPCODES[instruction.opcode]
            scatters = kind == "all-reduce" and computation.name.startswith("all-reduce-scatter")
            groups = replica_groups(instruction, len(self._places))
            pairs = kind == "collective-permute"
            axis = mesh_axes(groups, self._mesh, self._places, pairs=pairs)
            size = max(map(len, groups))
            shift, block = distance(groups, self._mesh, self._places) if pairs else (0, 0)
        elif instruction.opcode == "send" and (
            transfer := _MEGASCALE.search(instruction.attributes)
        ):
            kind, scatters = transfer.group(1).lower().replace("_", "-"), False
            axis, size, shift, block = "pod", self._mesh.get("pod", 2), 0, 0
        else:
            return None
        if size == 1:
            return None
        dtype = computation.operand_shapes(instruction)[0].dtype
        operand, result = _bytes(computation, instruction)
        if scatters:
            kind, result = "reduce-scatter", _sum_bytes(computation.root.shapes)
        alone = form in ("", "fusion") and not (
            instruction.opcode.endswith("-start") or instruction.opcode == "send"
        )
        return Collective(
            kind, axis, size, dtype, operand, result, times, bool(loops), instruction.name,
            instruction.op_name, alone, shift, block, instruction.attribute("channel_id") or "",
        )  # fmt: skip


def fusion_form(computation: Computation) -> str:
    """Returns AsyncCollectiveStart or AsyncCollectiveDone for such a fusion's computation."""
    for target in ("AsyncCollectiveStart", "AsyncCollectiveDone"):
        if _calls_target(computation, target):
            return target
    return ""


def _calls_target(computation: Computation, target: str) -> bool:
    return any(
        i.opcode == "custom-call" and i.attribute("custom_call_target") == target
        for i in computation.instructions.values()
    )


def _bytes(computation: Computation, instruction: Instruction) -> tuple[int, int]:
    if instruction.opcode.startswith("ragged-all-to-all"):
        # (rows, the buffer they arrive in, offsets and sizes). Each holds the most that a device
        # can have; with an even load, as many rows are sent as the smaller one holds.
        rows, buffer = computation.operand_shapes(instruction)[:2]
        return (min(rows.bytes, buffer.bytes),) * 2
    operand = _sum_bytes(computation.operand_shapes(instruction))
    if instruction.opcode == "send" or instruction.opcode == "collective-permute-start":
        return operand, operand
    if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
        # The result is (operands, results, contexts). Contexts are scalars.
        return operand, _sum_bytes(shape for shape in instruction.shapes if shape.dims) - operand
    return operand, _sum_bytes(instruction.shapes)


def _sum_bytes(shapes: Iterable[Shape]) -> int:
    return sum(shape.bytes for shape in shapes)
