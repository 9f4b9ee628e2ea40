"""Reads the schedule of a compiled program: in which order one device computes and communicates.

    schedule = read_schedule(compiled.as_text(), {"pod": 1, "data": 4, "model": 2})

`planning.timeline` simulates it. An item of a schedule is one of

- `("work", i)`: executes `work[i]`;
- `("wait", i)`: executes `collectives[i]` and waits for it;
- `("start", i)`: starts `collectives[i]`, which runs beside what follows;
- `("done", [i, ...])`: waits for the one of these collectives that was started first;
- `("loop", n, items)`: executes the items n times.

Instructions are executed in the order of the text (`is_scheduled=true`). The start of a collective
can be in the previous iteration of a loop or before the loop; its done then names all of them.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from paxlike.accounting.hlo import Computation, Instruction, Module, parse
from paxlike.accounting.hlo_collectives import Collective, CollectiveReader, fusion_form
from paxlike.accounting.hlo_walk import Visit, called, fused, trip_count
from paxlike.accounting.hlo_work import Work, WorkReader


@dataclasses.dataclass(frozen=True)
class Schedule:
    work: list[Work]
    collectives: list[Collective]
    items: list


class _Scope(NamedTuple):
    """A computation, and the loop of which it is the body."""

    computation: Computation
    loop: Instruction | None = None
    outer: "_Scope | None" = None


def read_schedule(text: str | Module, mesh: Mapping[str, int]) -> Schedule:
    """Reads HLO text or a parsed module. mesh: axis -> size, major first."""
    module = parse(text) if isinstance(text, str) else text
    return _Builder(module, mesh).schedule()


class _Builder:
    def __init__(self, module: Module, mesh: Mapping[str, int]):
        self._module = module
        self._collectives = CollectiveReader(module, mesh)
        self._work = WorkReader(module)
        self._found = Schedule([], [], [])
        self._started: dict[object, list[int]] = {}
        """Start instruction (computation, name) or channel -> collectives."""
        self._done: list[tuple[list, list[object]]] = []
        """(indices to fill, keys of `_started`) of each done."""

    def schedule(self) -> Schedule:
        self._found.items.extend(self._items(_Scope(self._module.entry), 1, ()))
        for indices, keys in self._done:
            indices.extend(dict.fromkeys(i for key in keys for i in self._started.get(key, ())))
        return self._found

    def _items(self, scope: _Scope, times: int, loops: tuple[str, ...]) -> list:
        items: list = []
        for instruction in scope.computation.instructions.values():
            visit = Visit(instruction, scope.computation, times, loops)
            if instruction.opcode == "while":
                trips = trip_count(self._module, scope.computation, instruction)
                runs = 1 if trips is None else trips
                body = self._module.computations[instruction.required("body")]
                inside = (*loops, instruction.name)
                repeated = self._items(_Scope(body, instruction, scope), times * runs, inside)
                items.append(("loop", runs, repeated))
            elif names := called(instruction, fusions=False):
                for name in names:
                    inner = _Scope(self._module.computations[name])
                    items += self._items(inner, times, loops)
            elif keys := self._ends(scope, instruction):
                indices: list[int] = []
                self._done.append((indices, keys))
                items.append(("done", indices))
            else:
                items += self._one(visit)
        return items

    def _one(self, visit: Visit) -> list:
        items: list = []
        for collective in self._collectives.started(visit):
            index = len(self._found.collectives)
            self._found.collectives.append(collective)
            items.append(("wait" if collective.alone else "start", index))
            for key in ((visit.computation.name, visit.instruction.name), collective.channel):
                self._started.setdefault(key, []).append(index)
        if work := self._work.work(visit):
            items.append(("work", len(self._found.work)))
            self._found.work.append(work)
        return items

    def _ends(self, scope: _Scope, instruction: Instruction) -> list[object]:
        """Returns the keys of the collectives for which an instruction waits."""
        inner = fused(self._module, instruction)
        if inner is not None and fusion_form(inner) == "AsyncCollectiveDone":
            channels = (i.attribute("channel_id") for i in inner.instructions.values())
            return [channel for channel in channels if channel]
        if not instruction.opcode.endswith("-done") or not instruction.operands:
            return []
        return list(self._starts(scope, instruction.operands[0], set()))

    def _starts(self, scope: _Scope, name: str, seen: set) -> Iterable[object]:
        """Traces a done's operand to its starts, through tuples and loops."""
        if (scope.computation.name, name) in seen:
            return
        seen.add((scope.computation.name, name))
        instruction = scope.computation.instructions[name]
        opcode = instruction.opcode
        if opcode.endswith("-start") or opcode == "send":
            yield scope.computation.name, name
        elif opcode == "get-tuple-element":
            element = int(instruction.required("index"))
            yield from self._elements(scope, instruction.operands[0], element, seen)
        elif opcode in ("copy", "bitcast", "opt-barrier") or opcode.endswith("-update"):
            yield from self._starts(scope, instruction.operands[0], seen)

    def _elements(self, scope: _Scope, name: str, element: int, seen: set) -> Iterable[object]:
        """Traces an element of a tuple to its starts."""
        instruction = scope.computation.instructions[name]
        if instruction.opcode == "tuple":
            yield from self._starts(scope, instruction.operands[element], seen)
        elif instruction.opcode == "opt-barrier":
            yield from self._elements(scope, instruction.operands[0], element, seen)
        elif instruction.opcode == "while":
            body = _Scope(
                self._module.computations[instruction.required("body")], instruction, scope
            )
            yield from self._elements(body, body.computation.root.name, element, seen)
        elif instruction.opcode == "parameter" and scope.loop and scope.outer:
            yield from self._elements(scope, scope.computation.root.name, element, seen)
            yield from self._elements(scope.outer, scope.loop.operands[0], element, seen)
