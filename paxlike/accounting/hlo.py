"""Parses the text of an optimized XLA program (`compiled.as_text()`).

    module = parse(compiled.as_text())

`hlo_walk` visits the instructions of a module.
"""

import dataclasses
import functools
import math
import re
from typing import NamedTuple


class Shape(NamedTuple):
    """The element type (XLA's name) and dimensions of an array."""

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
    """Returns all array shapes in HLO text, in order. Tuples are flattened."""
    found = _SHAPE.findall(text)
    return tuple(
        Shape(dtype, tuple(int(n.strip("<=")) for n in dims.split(",") if n))
        for dtype, dims in found
    )


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    result: str
    """The result's shape, as text."""
    arguments: str
    """The text in the parentheses after the opcode."""
    attributes: str
    """The text after these parentheses."""
    root: bool

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        return shapes_in(self.result)

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """The operands' names. In the text, a shape may precede each."""
        return tuple(
            part.split()[-1].lstrip("%")
            for part in _split(_COMMENT.sub("", self.arguments))
            if part.strip()
        )

    def attribute(self, name: str) -> str | None:
        """Returns the value of `name=`: a word, or the text in quotes or (innermost) braces."""
        match = re.search(
            rf', {name}=(?:"([^"]*)"|\{{([^{{}}]*)\}}|%?([^\s,{{}}"]+))', self.attributes
        )
        return next(value for value in match.groups() if value is not None) if match else None

    def required(self, name: str) -> str:
        """Returns an attribute that every instruction of this kind has, or raises ValueError."""
        value = self.attribute(name)
        if value is None:
            raise ValueError(f"the {self.opcode} {self.name} has no attribute {name}.")
        return value

    @property
    def op_name(self) -> str:
        """The JAX operation, such as `jit(step)/while/body/btd,df->btf/dot_general`."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match.group(1) if match else ""


@dataclasses.dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        return next(
            (i for i in self.instructions.values() if i.root), list(self.instructions.values())[-1]
        )

    def operand_shapes(self, instruction: Instruction) -> list[Shape]:
        """Returns the shapes of the operands. Tuples are flattened."""
        return [shape for name in instruction.operands for shape in self.instructions[name].shapes]


@dataclasses.dataclass
class Module:
    computations: dict[str, Computation]
    entry: Computation


_COMMENT = re.compile(r"/\*.*?\*/")
_INSTRUCTION = re.compile(r"\s+(ROOT\s+)?%?([\w.\-]+) = ")
_HEADER = re.compile(r"(ENTRY\s+)?%?([\w.\-]+)\s*(\(.*)?\{\s*$")
_END = re.compile(r'\}(, execution_thread="[^"]*")?')
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")


def parse(text: str) -> Module:
    """Parses HLO text. Raises ValueError if it is truncated or has no ENTRY computation."""
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    current: Computation | None = None
    pending: list[str] = []

    def finish() -> None:
        if pending and current is not None:
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
        elif pending:  # an attribute with line breaks, as in configs of TPU kernels
            pending.append(line)
    if current is not None:
        raise ValueError(f"truncated HLO text: the computation {current.name} does not end.")
    if entry is None:
        raise ValueError(
            "not an HLO text: it has no ENTRY computation. Pass the result of compiled.as_text()."
        )
    return Module(computations, entry)


def _open_braces(lines: list[str]) -> bool:
    text = re.sub(r'"(?:[^"\\]|\\.)*"', "", "\n".join(lines))
    return text.count("{") > text.count("}")


def _instruction(text: str) -> Instruction:
    start = _matched(_INSTRUCTION.match(text), text)
    rest = text[start.end() :]
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opcode = _matched(_OPCODE.match(rest, end), text)
    close = _closing(rest, opcode.end() - 1)
    return Instruction(
        start.group(2),
        opcode.group(1),
        rest[:end],
        rest[opcode.end() : close - 1],
        rest[close:],
        bool(start.group(1)),
    )


def _matched(match: re.Match[str] | None, text: str) -> re.Match[str]:
    if match is None:
        raise ValueError(f"not an HLO instruction: {text[:80]!r}.")
    return match


def _closing(text: str, start: int) -> int:
    """Returns the position after the closing parenthesis for the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"truncated HLO text: an open parenthesis in {text[:80]!r}.")


def _split(text: str) -> list[str]:
    """Splits text at the commas that are outside all brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[\[\](){},]", text):
        char = match.group()
        if char == "," and depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
        elif char != ",":
            depth += 1 if char in "[({" else -1
    return [*parts, text[start:]]
