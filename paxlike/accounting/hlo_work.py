"""What a device does in one step of a compiled program, instruction by instruction: FLOPs of matrix products, bytes of memory moved.

    work, windows = list_work(compiled.as_text())
    sum(w.times * w.flops for w in work), sum(w.times * w.bytes for w in work)

A fusion is one piece of work: what it computes inside never leaves the chip. Its bytes are those it reads and writes:

- of an operand of which only slices are used, the slices: one layer of a stack of layers;
- of a result that is an operand with a part replaced, the part: what a loop writes into a stack;
- nothing for arrays that the compiler keeps in a chip's own memory (TPU memory spaces S(1) and above).

An instruction is counted as if nothing stayed in a cache between it and the next.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from paxlike.accounting.hlo import Computation, Instruction, Module, Shape, Visit, parse, trip_count, walk
from paxlike.accounting.hlo_collectives import KINDS
from paxlike.accounting.hlo_matmuls import count_one


class Work(NamedTuple):
    name: str
    op_name: str
    times: int
    """Runs in one execution of the program."""
    flops: int
    """Of one run: matrix products, attention kernels as full squares."""
    bytes: int
    """Read and written in one run."""
    kernel: bool
    """An attention kernel."""
    beside: bool
    """A copy that runs beside other work (asynchronous)."""


_NO_WORK = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "while", "call",
    "conditional", "opt-barrier", "send", "send-done", "recv", "recv-done", "domain", "add-dependency",
    *KINDS, *(kind + suffix for kind in KINDS for suffix in ("-start", "-done")),
}  # fmt: skip
_END = 2**60
_BESIDE = ("copy-start", "slice-start", "async-start")


class Windows(dict[str, tuple[int, int]]):
    """Collective's name -> (first, end): it is under way during work[first:end] of the list."""


def list_work(text: str | Module) -> tuple[list[Work], Windows]:
    """The work of an HLO text (or of a parsed one), of one device, in the order in which it is scheduled; and which of it lies between
    the start and the done of each asynchronous collective. A done that another round of a loop waits for closes no window: all that
    follows the start in its round lies in it."""
    module = parse(text) if isinstance(text, str) else text
    reader = _Reader(module)
    found: list[Work] = []
    windows, started = Windows(), {}
    for instruction, computation, times, _ in top_level(module):
        opcode = instruction.opcode
        if opcode.endswith("-start") or opcode == "send":
            started[instruction.name] = names = _collectives(module, instruction)
            for name in names:
                windows[name] = len(found), _END
        elif opcode.endswith("-done"):
            for name in started.get(instruction.operands[0], ()):
                windows[name] = windows[name][0], len(found)
        if opcode in _NO_WORK or opcode.endswith(("-done", "-update")) or _communicates(module, instruction):
            continue
        flops, kernel = reader.flops(computation, instruction)
        moved = reader.moved(computation, instruction)
        if flops or moved:
            beside = opcode in _BESIDE
            found.append(Work(instruction.name, instruction.op_name, times, flops, moved, kernel, beside))
    return found, Windows({name: (first, min(end, len(found))) for name, (first, end) in windows.items()})


def _collectives(module: Module, instruction: Instruction) -> list[str]:
    """Names of the collectives that an instruction starts: itself, or what it wraps."""
    inner = _inner(module, instruction)
    if instruction.opcode != "async-start" or inner is None:
        return [instruction.name]
    return [i.name for i in inner.instructions.values() if i.opcode in KINDS]


def top_level(module: Module) -> Iterator[Visit]:
    """Every instruction that runs, with its multiplicity, as `hlo.walk`; fusions and asynchronous operations whole."""
    yield from _top_level(module, module.entry, 1, ())


def _top_level(module: Module, computation: Computation, times: int, loops: tuple[str, ...]) -> Iterator[Visit]:
    for instruction in computation.instructions.values():
        yield Visit(instruction, computation, times, loops)
        if instruction.opcode == "while":
            trips = trip_count(module, computation, instruction)
            body = module.computations[instruction.attribute("body")]
            yield from _top_level(module, body, times * (1 if trips is None else trips), (*loops, instruction.name))
        elif instruction.opcode in ("call", "conditional"):
            for key in ("to_apply", "branch_computations", "true_computation", "false_computation"):
                for name in (instruction.attribute(key) or "").split(","):
                    if name.strip():
                        yield from _top_level(module, module.computations[name.strip().lstrip("%")], times, loops)


def _inner(module: Module, instruction: Instruction) -> Computation | None:
    name = instruction.attribute("calls")
    return module.computations.get(name.lstrip("%")) if name else None


def _communicates(module: Module, instruction: Instruction) -> bool:
    """Whether an instruction is a collective in other clothes: asynchronous, or fused with the slice of its result."""
    inner = _inner(module, instruction)
    if inner is None or not (instruction.opcode == "async-start" or inner.name.startswith("all-reduce-scatter")):
        return False
    return any(i.opcode in KINDS or _communicates(module, i) for i in inner.instructions.values())


_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_COMMENT = re.compile(r"/\*.*?\*/")


def _in_memory(text: str) -> int:
    """Bytes of the arrays in a shape's text that lie in the device's main memory."""
    total = 0
    for dtype, dims, layout in _ARRAY.findall(_COMMENT.sub("", text)):
        if not re.search(r"S\([1-9]", layout):
            total += Shape(dtype, tuple(int(n.strip("<=")) for n in dims.split(",") if n)).bytes
    return total


class _Reader:
    def __init__(self, module: Module):
        self.module = module
        self._reads: dict[str, dict[int, int | None]] = {}

    def flops(self, computation: Computation, instruction: Instruction) -> tuple[int, bool]:
        """(FLOPs of one run, whether in an attention kernel), what is called included."""
        counted = count_one(computation, instruction)
        total, kernel = (counted[1] or 0, counted[0] == "attention kernel") if counted else (0, False)
        inner = _inner(self.module, instruction)
        if inner is not None:
            for visit in walk(Module(self.module.computations, inner)):
                counted = count_one(visit.computation, visit.instruction)
                if counted:
                    total += (counted[1] or 0) * visit.times
                    kernel |= counted[0] == "attention kernel"
        return total, kernel

    def moved(self, computation: Computation, instruction: Instruction) -> int:
        inner = _inner(self.module, instruction)
        texts = [computation.instructions[name].result for name in instruction.operands]
        if instruction.opcode == "custom-call" and "AllocateBuffer" in instruction.attributes:
            return 0
        if inner is None:
            return self._simple(instruction, texts)
        reads = self.reads(inner)
        read = sum(
            _in_memory(text) if reads.get(i) is None else min(reads[i], _in_memory(text))
            for i, text in enumerate(texts)
        )
        return read + self.written(inner, inner.root, instruction.result)

    def _simple(self, instruction: Instruction, texts: list[str]) -> int:
        """An instruction that calls nothing."""
        result = _in_memory(instruction.result)
        match instruction.opcode:
            case "dynamic-slice" | "slice" | "gather":
                return 2 * result
            case "dynamic-update-slice":
                return 2 * _in_memory(texts[1])
            case "copy-start" | "slice-start":
                # (destination, source, context): what is not in main memory is not counted
                return result
        return result + sum(map(_in_memory, texts))

    def reads(self, computation: Computation) -> dict[int, int | None]:
        """Parameter's number -> bytes read of it, None for all of it."""
        if computation.name not in self._reads:
            users: dict[str, list[Instruction]] = {}
            for instruction in computation.instructions.values():
                for name in instruction.operands if instruction.opcode not in ("parameter", "constant") else ():
                    users.setdefault(name, []).append(instruction)
            parameters = [i for i in computation.instructions.values() if i.opcode == "parameter"]
            self._reads[computation.name] = {
                int(p.arguments): self._read(computation, p.name, users) for p in parameters
            }
        return self._reads[computation.name]

    def _read(self, computation: Computation, name: str, users: dict[str, list[Instruction]]) -> int | None:
        total = 0
        for user in users.get(name, ()):
            inner = _inner(self.module, user)
            if user.opcode in ("bitcast", "get-tuple-element"):
                read = self._read(computation, user.name, users)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                read = sum(shape.bytes for shape in user.shapes)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                read = 0
            elif inner is not None:
                parts = [self.reads(inner).get(i) for i, operand in enumerate(user.operands) if operand == name]
                read = None if None in parts else sum(parts)
            else:
                read = None
            if read is None:
                return None
            total += read
        return total

    def written(self, computation: Computation, root: Instruction, result: str) -> int:
        """Bytes that a fusion writes: of arrays with a part replaced, the part."""
        if root.opcode == "tuple":
            outs = [computation.instructions[name] for name in root.operands]
            return sum(self.written(computation, out, text) for out, text in zip(outs, _elements(result), strict=False))
        if root.opcode == "bitcast":
            return self.written(computation, computation.instructions[root.operands[0]], result)
        if root.opcode == "dynamic-update-slice":
            update = computation.instructions[root.operands[1]]
            return min(_in_memory(result), sum(shape.bytes for shape in update.shapes))
        inner = _inner(self.module, root)
        if inner is not None and root.opcode == "fusion":
            return self.written(inner, inner.root, result)
        return _in_memory(result)


def _elements(text: str) -> list[str]:
    """The arrays of a tuple's shape, as text."""
    return [match.group() for match in _ARRAY.finditer(_COMMENT.sub("", text))]
