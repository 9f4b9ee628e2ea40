"""Lists the matmul FLOPs and the memory traffic of each instruction of a compiled program.

    work = list_work(compiled.as_text())
    sum(w.times * w.flops for w in work), sum(w.times * w.bytes for w in work)

A fusion is one entry, because its intermediate results never leave the chip. Its bytes are those it
reads and writes:

- only the slices of an operand, if nothing else is used: one layer of a stack of layers;
- only the updated part of a result, if the rest is an operand: what a loop writes into a stack;
- nothing for arrays in on-chip memory (TPU memory spaces S(1) and above);
- nothing for arrays that it passes on, as does a fusion that advances a collective.

Assumes that no data stays in a cache between instructions.
"""

import re
from typing import NamedTuple

from paxlike.accounting.grouped_rows import flops_of_all
from paxlike.accounting.hlo import (
    Computation,
    Instruction,
    Module,
    Shape,
    parse,
)
from paxlike.accounting.hlo_collectives import KINDS, fusion_form
from paxlike.accounting.hlo_matmuls import count_one
from paxlike.accounting.hlo_walk import Visit, fused, walk


class Work(NamedTuple):
    name: str
    op_name: str
    times: int
    """Number of executions in one run of the program."""
    flops: int
    """FLOPs of matrix products in one execution. Attention kernels count as full squares."""
    bytes: int
    """Bytes read and written in one execution."""
    kernel: bool
    """Whether it is an attention kernel."""
    asynchronous: bool
    """Whether it is a copy that overlaps with other work."""


_NO_WORK = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "while", "call", "conditional", "opt-barrier", "send", "send-done", "recv",
    "recv-done", "domain", "add-dependency",
    *KINDS, *(kind + suffix for kind in KINDS for suffix in ("-start", "-done")),
}  # fmt: skip
_ASYNCHRONOUS = ("copy-start", "slice-start", "async-start")


def list_work(text: str | Module) -> list[Work]:
    """Lists the work of one device in HLO text or a parsed module, in scheduled order."""
    module = parse(text) if isinstance(text, str) else text
    reader = WorkReader(module)
    return [work for visit in walk(module, fusions=False) if (work := reader.work(visit))]


def _communicates(module: Module, instruction: Instruction) -> bool:
    """Whether an instruction only wraps a collective, or fuses it with a slice of its result."""
    inner = fused(module, instruction)
    if inner is None:
        return False
    if fusion_form(inner):
        return True
    wraps = instruction.opcode in ("async-start", "call-start") or inner.name.startswith(
        "all-reduce-scatter"
    )
    return wraps and any(
        i.opcode in KINDS or _communicates(module, i) for i in inner.instructions.values()
    )


_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_COMMENT = re.compile(r"/\*.*?\*/")


def _in_memory(text: str) -> int:
    """Returns the bytes of the arrays in a shape's text that are in the device's main memory."""
    total = 0
    for dtype, dims, layout in _ARRAY.findall(_COMMENT.sub("", text)):
        if not re.search(r"S\([1-9]", layout):
            total += Shape(dtype, tuple(int(n.strip("<=")) for n in dims.split(",") if n)).bytes
    return total


class WorkReader:
    """Computes the FLOPs and the traffic of instructions."""

    def __init__(self, module: Module):
        self.module = module
        self._reads: dict[str, dict[int, int | None]] = {}

    def work(self, visit: Visit) -> Work | None:
        """Returns the work of an instruction at the top level, if it is any."""
        instruction, computation, times, _ = visit
        opcode = instruction.opcode
        if opcode in _NO_WORK or opcode.endswith(("-done", "-update")):
            return None
        if _communicates(self.module, instruction):
            return None
        flops, kernel = self.flops(computation, instruction)
        moved = self.moved(computation, instruction)
        if not (flops or moved):
            return None
        name, op_name = instruction.name, instruction.op_name
        return Work(name, op_name, times, flops, moved, kernel, opcode in _ASYNCHRONOUS)

    def flops(self, computation: Computation, instruction: Instruction) -> tuple[int, bool]:
        """Returns (FLOPs of one execution, whether in an attention kernel), including callees."""
        counted = count_one(computation, instruction)
        total, kernel = (
            (counted[1] or 0, counted[0] == "attention kernel") if counted else (0, False)
        )
        total = flops_of_all(instruction.op_name, total)
        inner = fused(self.module, instruction)
        if inner is not None:
            for visit in walk(Module(self.module.computations, inner)):
                counted = count_one(visit.computation, visit.instruction)
                if counted:
                    inside = flops_of_all(visit.instruction.op_name, counted[1] or 0)
                    total += inside * visit.times
                    kernel |= counted[0] == "attention kernel"
        return total, kernel

    def moved(self, computation: Computation, instruction: Instruction) -> int:
        """Returns the bytes read and written in one execution."""
        inner = fused(self.module, instruction)
        texts = [computation.instructions[name].result for name in instruction.operands]
        if instruction.opcode == "custom-call" and "AllocateBuffer" in instruction.attributes:
            return 0
        if inner is None:
            return self._simple(instruction, texts)
        reads = self.reads(inner)
        read = 0
        for i, text in enumerate(texts):
            part, whole = reads.get(i), _in_memory(text)
            read += whole if part is None else min(part, whole)
        return read + self.written(inner, inner.root, instruction.result)

    def _simple(self, instruction: Instruction, texts: list[str]) -> int:
        """Returns the bytes moved by an instruction that calls no computation."""
        result = _in_memory(instruction.result)
        match instruction.opcode:
            case "dynamic-slice" | "slice" | "gather":
                return 2 * result
            case "dynamic-update-slice":
                return 2 * _in_memory(texts[1])
            case "copy-start" | "slice-start":
                # (destination, source, context): arrays outside of main memory are not counted.
                return result
        return result + sum(map(_in_memory, texts))

    def reads(self, computation: Computation) -> dict[int, int | None]:
        """Returns parameter number -> bytes read of it, or None for all."""
        if computation.name not in self._reads:
            users: dict[str, list[Instruction]] = {}
            for instruction in computation.instructions.values():
                for name in (
                    instruction.operands
                    if instruction.opcode not in ("parameter", "constant")
                    else ()
                ):
                    users.setdefault(name, []).append(instruction)
            parameters = [i for i in computation.instructions.values() if i.opcode == "parameter"]
            self._reads[computation.name] = {
                int(p.arguments): self._read(computation, p.name, users) for p in parameters
            }
        return self._reads[computation.name]

    def _read(
        self, computation: Computation, name: str, users: dict[str, list[Instruction]]
    ) -> int | None:
        total = 0
        for user in users.get(name, ()):
            inner = fused(self.module, user)
            read: int | None
            if user.opcode in KINDS or user.opcode == "tuple":
                read = 0
            elif user.opcode in ("bitcast", "get-tuple-element"):
                read = self._read(computation, user.name, users)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                read = sum(shape.bytes for shape in user.shapes)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                read = 0
            elif inner is not None:
                parts = [
                    self.reads(inner).get(i)
                    for i, operand in enumerate(user.operands)
                    if operand == name
                ]
                known = [part for part in parts if part is not None]
                read = sum(known) if len(known) == len(parts) else None
            else:
                read = None
            if read is None:
                return None
            total += read
        return total

    def written(self, computation: Computation, root: Instruction, result: str) -> int:
        """Returns the bytes that a fusion writes: of an updated array, only the updated part."""
        if root.opcode == "tuple":
            outs = [computation.instructions[name] for name in root.operands]
            return sum(
                self.written(computation, out, text)
                for out, text in zip(outs, _elements(result), strict=False)
            )
        if root.opcode == "parameter" or root.opcode in KINDS:
            return 0
        if root.opcode == "bitcast":
            return self.written(computation, computation.instructions[root.operands[0]], result)
        if root.opcode == "dynamic-update-slice":
            update = computation.instructions[root.operands[1]]
            return min(_in_memory(result), sum(shape.bytes for shape in update.shapes))
        inner = fused(self.module, root)
        if inner is not None and root.opcode == "fusion":
            return self.written(inner, inner.root, result)
        return _in_memory(result)


def _elements(text: str) -> list[str]:
    """Returns the arrays in a tuple's shape, as text."""
    return [match.group() for match in _ARRAY.finditer(_COMMENT.sub("", text))]
