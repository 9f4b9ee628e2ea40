"""Visits the instructions of an XLA program, with the number of their executions.

    for instruction, computation, times, loops in walk(parse(compiled.as_text())): ...

Unlike `cost_analysis()`, `walk` multiplies loop bodies by their trip counts. It counts all branches
of a conditional. `hlo_matmuls` and `hlo_collectives` build on it.

The trip count is the compiler's `known_trip_count`, or (on TPU, which has none) is derived from the
loop's condition, initial value and increment. Loops with an unknown trip count are counted once and
listed by `unknown_loops`.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from paxlike.accounting.grouped_rows import is_counted
from paxlike.accounting.hlo import Computation, Instruction, Module


class Visit(NamedTuple):
    instruction: Instruction
    computation: Computation
    times: int
    """Number of executions in one run of the program."""
    loops: tuple[str, ...]
    """Names of the loops around it, outermost first."""


def called(instruction: Instruction, fusions: bool = True) -> list[str]:
    """Returns the computations that an instruction calls, except for loops.

    These are bodies of calls, branches of conditionals and, if `fusions`, bodies of fusions and
    asynchronous operations.
    """
    wraps = instruction.opcode in ("fusion", "async-start", "fusion-start", "call-start")
    if instruction.opcode == "call" or (fusions and wraps):
        keys = ("calls", "to_apply", "called_computations")
    elif instruction.opcode == "conditional":
        keys = ("branch_computations", "true_computation", "false_computation")
    else:
        return []
    values = (instruction.attribute(key) for key in keys)
    return [name.strip().lstrip("%") for value in values if value for name in value.split(",")]


def walk(module: Module, fusions: bool = True) -> Iterator[Visit]:
    """Yields every executed instruction with its number of executions.

    fusions: whether to enter fusions and asynchronous operations.
    """
    yield from _walk(module, module.entry, 1, (), fusions)


def _walk(
    module: Module, computation: Computation, times: int, loops: tuple[str, ...], fusions: bool
) -> Iterator[Visit]:
    for instruction in computation.instructions.values():
        yield Visit(instruction, computation, times, loops)
        if instruction.opcode == "while":
            trips = trip_count(module, computation, instruction)
            runs = times * (1 if trips is None else trips)
            body = module.computations[instruction.required("body")]
            yield from _walk(module, body, runs, (*loops, instruction.name), fusions)
        for name in called(instruction, fusions):
            yield from _walk(module, module.computations[name], times, loops, fusions)


def fused(module: Module, instruction: Instruction) -> Computation | None:
    """Returns the computation that a fusion or an asynchronous operation wraps, if any."""
    name = instruction.attribute("to_apply" if instruction.opcode == "call-start" else "calls")
    return module.computations.get(name.lstrip("%")) if name else None


def unknown_loops(module: Module) -> list[str]:
    """Returns the loops with an unknown trip count, except those of products in blocks
    (`grouped_rows.py`). `walk` counts their bodies once."""
    visits = (visit for visit in walk(module) if visit.instruction.opcode == "while")
    return [
        v.instruction.name
        for v in visits
        if trip_count(module, v.computation, v.instruction) is None
        and not is_counted(v.instruction.op_name)
    ]


# ---- trip counts ---------------------------------------------------------------------------------


class _State(NamedTuple):
    """An element of the loop state plus a constant."""

    element: int
    plus: int = 0


_WHOLE_STATE = object()
_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Returns how often the body of a `while` runs, or None if the text does not determine it."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known.group(1))
    body = module.computations[loop.required("body")]

    def first(element):
        state = computation.instructions[loop.operands[0]]
        name = state.operands[element] if state.opcode == "tuple" else None
        return name and _value(module, computation, name, {})

    def after(element):
        name = body.root.operands[element] if body.root.opcode == "tuple" else None
        return name and _value(module, body, name, {0: _WHOLE_STATE})

    comparison = _comparison(module, module.computations[loop.required("condition")])
    if comparison is None:
        return None
    left, right, direction = comparison
    if isinstance(left, int) or (
        isinstance(left, _State) and after(left.element) == _State(left.element)
    ):
        left, right, direction = right, left, _MIRRORED.get(direction, direction)
    # The bound may be an element of the state that the loop does not change.
    if isinstance(right, _State) and after(right.element) == _State(right.element):
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
    """Returns (left, right, direction) of the comparison in a loop's condition."""
    values, root = {0: _WHOLE_STATE}, computation.root
    while root.opcode in ("fusion", "call"):
        values = {
            i: _value(module, computation, name, values) for i, name in enumerate(root.operands)
        }
        computation = module.computations[called(root)[0]]
        root = computation.root
    if root.opcode != "compare":
        return None
    left, right = (_value(module, computation, name, values) for name in root.operands)
    return left, right, root.attribute("direction")


def _value(module: Module, computation: Computation, name: str, parameters: dict) -> object:
    """Evaluates an instruction: an int, an element of the loop state, the whole state, or None."""
    instruction = computation.instructions[name]
    match instruction.opcode:
        case "constant":
            is_integer = re.fullmatch(r"-?\d+", instruction.arguments)
            return int(instruction.arguments) if is_integer else None
        case "parameter":
            return parameters.get(int(instruction.arguments))
        case "copy" | "bitcast" | "convert" | "reshape" | "opt-barrier":
            return _value(module, computation, instruction.operands[0], parameters)
        case "get-tuple-element":
            state = _value(module, computation, instruction.operands[0], parameters)
            return _State(int(instruction.required("index"))) if state is _WHOLE_STATE else None
        case "add" | "subtract":
            left, right = (
                _value(module, computation, operand, parameters) for operand in instruction.operands
            )
            return _sum(left, right, 1 if instruction.opcode == "add" else -1)
        case "fusion" | "call":
            inner = module.computations[called(instruction)[0]]
            values = {
                i: _value(module, computation, operand, parameters)
                for i, operand in enumerate(instruction.operands)
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
