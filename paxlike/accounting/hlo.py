"""Reads the text of an optimized XLA program (`compiled.as_text()`): computations, calls, and loops with their trip counts.

    module = parse(compiled.as_text())
    for instruction, computation, times, loops in walk(module): ...

`walk` visits every instruction that runs, with how often it runs in one execution of the program: loop bodies are multiplied by
their trip counts, which `cost_analysis()` does not do. `hlo_matmuls` and `hlo_collectives` build on it.

The trip count is what the compiler noted (`known_trip_count`) or, where it notes nothing (TPU), what the loop's condition, first value
and step say. A loop whose count cannot be told is counted once and listed by `unknown_loops`. Every branch of a conditional is
counted.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple


class Shape(NamedTuple):
    """One array: the element type as XLA spells it, and the dimensions."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        if self.dtype == "pred":
            return self.elements
        bits = re.search(r"\d+", self.dtype)
        return -(-self.elements * int(bits.group()) // 8) if bits else 0


_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")


def shapes_in(text: str) -> tuple[Shape, ...]:
    """Every array shape in a piece of HLO text, in order; a tuple is flattened."""
    found = _SHAPE.findall(text)
    return tuple(Shape(dtype, tuple(int(n.strip("<=")) for n in dims.split(",") if n)) for dtype, dims in found)


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    result: str
    """The result's shape, as text."""
    arguments: str
    """What stands between the opcode's parentheses."""
    attributes: str
    """What follows them."""
    root: bool

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        return shapes_in(self.result)

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands, with or without a shape before them in the text."""
        return tuple(part.split()[-1].lstrip("%") for part in _split(_COMMENT.sub("", self.arguments)) if part.strip())

    def attribute(self, name: str) -> str | None:
        """The value of `name=`: a word, or what stands inside its quotes or (innermost) braces."""
        match = re.search(rf', {name}=(?:"([^"]*)"|\{{([^{{}}]*)\}}|%?([^\s,{{}}"]+))', self.attributes)
        return next(value for value in match.groups() if value is not None) if match else None

    @property
    def op_name(self) -> str:
        """Where it comes from in the JAX program, such as `jit(step)/while/body/btd,df->btf/dot_general`."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match.group(1) if match else ""


@dataclasses.dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        return next((i for i in self.instructions.values() if i.root), list(self.instructions.values())[-1])

    def operand_shapes(self, instruction: Instruction) -> list[Shape]:
        """Shapes of the operands, tuples flattened."""
        return [shape for name in instruction.operands for shape in self.instructions[name].shapes]


@dataclasses.dataclass
class Module:
    computations: dict[str, Computation]
    entry: Computation


class Visit(NamedTuple):
    instruction: Instruction
    computation: Computation
    times: int
    """How often it runs in one execution of the program."""
    loops: tuple[str, ...]
    """Names of the loops around it, outermost first."""


_COMMENT = re.compile(r"/\*.*?\*/")
_INSTRUCTION = re.compile(r"\s+(ROOT\s+)?%?([\w.\-]+) = ")
_HEADER = re.compile(r"(ENTRY\s+)?%?([\w.\-]+)\s*(\(.*)?\{\s*$")
_END = re.compile(r'\}(, execution_thread="[^"]*")?')
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")


def parse(text: str) -> Module:
    """The computations of an HLO text. Raises ValueError where it has no ENTRY computation or was cut short."""
    computations: dict[str, Computation] = {}
    entry, current, pending = None, None, []

    def finish():
        if pending:
            instruction = _instruction("\n".join(pending))
            current.instructions[instruction.name] = instruction
            pending.clear()

    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header and not line.startswith("HloModule"):
                current = computations[header.group(2)] = Computation(header.group(2))
                entry = current if header.group(1) else entry
        elif _INSTRUCTION.match(line):
            finish()
            pending.append(line)
        elif _END.fullmatch(line.strip()) and not _open_braces(pending):
            finish()
            current = None
        elif pending:  # an attribute with line breaks in it, as in the configs of TPU kernels
            pending.append(line)
    if current is not None:
        raise ValueError(f"this HLO text was cut short: the computation {current.name} does not end.")
    if entry is None:
        raise ValueError("this is no HLO text: it has no ENTRY computation (pass what compiled.as_text() returns).")
    return Module(computations, entry)


def _open_braces(lines: list[str]) -> bool:
    text = re.sub(r'"(?:[^"\\]|\\.)*"', "", "\n".join(lines))
    return text.count("{") > text.count("}")


def _instruction(text: str) -> Instruction:
    start = _INSTRUCTION.match(text)
    rest = text[start.end() :]
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, end)
    close = _closing(rest, opcode.end() - 1)
    return Instruction(
        start.group(2), opcode.group(1), rest[:end], rest[opcode.end() : close - 1], rest[close:], bool(start.group(1))
    )


def _closing(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"this HLO text was cut short: an open parenthesis in {text[:80]!r}.")


def _split(text: str) -> list[str]:
    """Parts between the commas outside of all brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[\[\](){},]", text):
        char = match.group()
        if char == "," and depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
        elif char != ",":
            depth += 1 if char in "[({" else -1
    return [*parts, text[start:]]


def called(instruction: Instruction) -> list[str]:
    """Computations that run where this instruction stands: bodies of fusions, calls, asynchronous operations, branches."""
    if instruction.opcode in ("fusion", "call", "async-start", "fusion-start", "call-start"):
        keys = ("calls", "to_apply", "called_computations")
    elif instruction.opcode == "conditional":
        keys = ("branch_computations", "true_computation", "false_computation")
    else:
        return []
    values = (instruction.attribute(key) for key in keys)
    return [name.strip().lstrip("%") for value in values if value for name in value.split(",")]


def walk(module: Module) -> Iterator[Visit]:
    """Every instruction that runs, with its multiplicity."""
    yield from _walk(module, module.entry, 1, ())


def _walk(module: Module, computation: Computation, times: int, loops: tuple[str, ...]) -> Iterator[Visit]:
    for instruction in computation.instructions.values():
        yield Visit(instruction, computation, times, loops)
        if instruction.opcode == "while":
            trips = trip_count(module, computation, instruction)
            body = module.computations[instruction.attribute("body")]
            yield from _walk(module, body, times * (1 if trips is None else trips), (*loops, instruction.name))
        for name in called(instruction):
            yield from _walk(module, module.computations[name], times, loops)


def unknown_loops(module: Module) -> list[str]:
    """Loops whose trip count the text does not tell: `walk` counts their bodies once."""
    visits = (visit for visit in walk(module) if visit.instruction.opcode == "while")
    return [v.instruction.name for v in visits if trip_count(module, v.computation, v.instruction) is None]


# ---- trip counts -------------------------------------------------------------------------------------------------------


class _State(NamedTuple):
    """An element of the loop's state, plus a constant."""

    element: int
    plus: int = 0


_WHOLE_STATE = object()


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often the body of a `while` runs, or None where the text does not tell."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if noted:
        return int(noted.group(1))
    body = module.computations[loop.attribute("body")]

    def first(element):
        state = computation.instructions[loop.operands[0]]
        name = state.operands[element] if state.opcode == "tuple" else None
        return name and _value(module, computation, name, {})

    def after(element):
        name = body.root.operands[element] if body.root.opcode == "tuple" else None
        return name and _value(module, body, name, {0: _WHOLE_STATE})

    comparison = _comparison(module, module.computations[loop.attribute("condition")])
    if comparison is None:
        return None
    left, right, direction = comparison
    if isinstance(left, int) or (isinstance(left, _State) and after(left.element) == _State(left.element)):
        left, right, direction = right, left, {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
    if isinstance(right, _State) and after(right.element) == _State(right.element):  # a bound carried along unchanged
        bound = first(right.element)
        right = bound + right.plus if isinstance(bound, int) else None
    if not (isinstance(left, _State) and isinstance(right, int)):
        return None
    start, step = first(left.element), after(left.element)
    if not (isinstance(start, int) and isinstance(step, _State) and step.element == left.element):
        return None
    return _trips(start + left.plus, right, step.plus, direction)


def _trips(start: int, bound: int, step: int, direction: str) -> int | None:
    if direction in ("LE", "GE"):
        bound += 1 if direction == "LE" else -1
        direction = "LT" if direction == "LE" else "GT"
    if step == 0 or (direction == "LT" and step < 0) or (direction == "GT" and step > 0):
        return None
    if direction == "NE" and (bound - start) % step:
        return None
    return max(0, -(-(bound - start) // step)) if direction in ("LT", "GT", "NE") else None


def _comparison(module: Module, computation: Computation) -> tuple | None:
    """(left, right, direction) of the comparison that a loop's condition returns."""
    values, root = {0: _WHOLE_STATE}, computation.root
    while root.opcode in ("fusion", "call"):
        values = {i: _value(module, computation, name, values) for i, name in enumerate(root.operands)}
        computation = module.computations[called(root)[0]]
        root = computation.root
    if root.opcode != "compare":
        return None
    left, right = (_value(module, computation, name, values) for name in root.operands)
    return left, right, root.attribute("direction")


def _value(module: Module, computation: Computation, name: str, parameters: dict) -> object:
    """An int, an element of the loop's state, the whole state, or None: what an instruction is known to be."""
    instruction = computation.instructions[name]
    match instruction.opcode:
        case "constant":
            return int(instruction.arguments) if re.fullmatch(r"-?\d+", instruction.arguments) else None
        case "parameter":
            return parameters.get(int(instruction.arguments))
        case "copy" | "bitcast" | "convert" | "reshape" | "opt-barrier":
            return _value(module, computation, instruction.operands[0], parameters)
        case "get-tuple-element":
            state = _value(module, computation, instruction.operands[0], parameters)
            return _State(int(instruction.attribute("index"))) if state is _WHOLE_STATE else None
        case "add" | "subtract":
            left, right = (_value(module, computation, operand, parameters) for operand in instruction.operands)
            return _sum(left, right, 1 if instruction.opcode == "add" else -1)
        case "fusion" | "call":
            inner = module.computations[called(instruction)[0]]
            values = {
                i: _value(module, computation, operand, parameters) for i, operand in enumerate(instruction.operands)
            }
            return _value(module, inner, inner.root.name, values)
    return None


def _sum(left: object, right: object, sign: int) -> object:
    if isinstance(right, int) and isinstance(left, int):
        return left + sign * right
    if isinstance(right, int) and isinstance(left, _State):
        return left._replace(plus=left.plus + sign * right)
    if isinstance(left, int) and isinstance(right, _State) and sign == 1:
        return right._replace(plus=right.plus + left)
    return None
