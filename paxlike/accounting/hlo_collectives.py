"""The collectives of a compiled program: what is sent, over which mesh axis, how often in a step.

    for row in list_collectives(compiled.as_text(), {"pod": 1, "data": 4, "model": 2}): ...

An asynchronous operation is counted once, where it starts. TPUs write some reduce-scatters as an all-reduce and a slice inside a fusion of
that name (`all-reduce-scatter`): they are listed as what they do. Between TPU slices (`pod`) the compiler sends by the host network instead
(Megascale): each transfer is listed under what it carries out, such as `all-reduce`, over the axis `pod`.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from paxlike.accounting.hlo import Computation, Instruction, Module, Shape, parse, walk

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
    """The mesh axis, several joined by `+` (`data+model`), or `part of ...` where a group holds only some of an axis' devices."""
    group_size: int
    dtype: str
    operand_bytes: int
    """What one device puts in, in one run."""
    result_bytes: int
    """What it gets out."""
    times: int
    """Runs in one execution of the program."""
    in_loop: bool
    name: str
    op_name: str
    alone: bool = True
    """Whether the device waits for it: it is one instruction, not a start and a done with work between them."""

    @property
    def payload(self) -> int:
        """Bytes of the whole array on one device: the gathered result, or what is reduced."""
        return max(self.operand_bytes, self.result_bytes)

    @property
    def sent_bytes(self) -> int:
        """Bytes that one device sends in one run, by the ring algorithm (an all-reduce is a reduce-scatter and an all-gather)."""
        share = (self.group_size - 1) / self.group_size
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.operand_bytes
        return round(self.payload * share * (2 if self.kind == "all-reduce" else 1))


@dataclasses.dataclass(frozen=True)
class Row:
    """All collectives of one kind over one axis."""

    kind: str
    axis: str
    in_loop: bool
    times: int
    """Runs a step."""
    payload: int
    """Bytes a step, on one device."""
    sent_bytes: int
    """Bytes a step that one device sends."""


def summarize(collectives: Iterable[Collective]) -> list[Row]:
    """Sums by kind, axis and whether in a loop, the most sent first."""
    rows: dict[tuple, list[Collective]] = {}
    for c in collectives:
        rows.setdefault((c.kind, c.axis, c.in_loop), []).append(c)
    made = [
        Row(
            *key,
            sum(c.times for c in group),
            sum(c.times * c.payload for c in group),
            sum(c.times * c.sent_bytes for c in group),
        )
        for key, group in rows.items()
    ]
    return sorted(made, key=lambda row: -row.sent_bytes)


def added(collectives: Iterable[Collective], baseline: Iterable[Collective]) -> list[Row]:
    """What a program sends beyond another one, by kind and axis; bytes that it saves elsewhere are not set against it.

    Sums of bytes, because a compiler may join what is sent at one time. Empty: nothing is added.
    """
    there = {(row.kind, row.axis, row.in_loop): row for row in summarize(baseline)}
    more = []
    for row in summarize(collectives):
        old = there.get((row.kind, row.axis, row.in_loop))
        if old is None:
            more.append(row)
        elif row.payload > old.payload:
            times, payload, sent = (getattr(row, n) - getattr(old, n) for n in ("times", "payload", "sent_bytes"))
            more.append(dataclasses.replace(row, times=max(0, times), payload=payload, sent_bytes=max(0, sent)))
    return more


def list_collectives(text: str | Module, mesh: Mapping[str, int]) -> list[Collective]:
    """Every collective of an HLO text, groups of one device left out.

    mesh: axis -> size, major first. A program from `jax.jit` numbers its devices in the mesh's own order.
    """
    module = parse(text) if isinstance(text, str) else text
    places = dict(enumerate(itertools.product(*(range(n) for n in mesh.values()))))
    found = []
    for instruction, computation, times, loops in walk(module):
        if instruction.opcode in _OPCODES:
            kind = _OPCODES[instruction.opcode]
            scatters = kind == "all-reduce" and computation.name.startswith("all-reduce-scatter")
            groups = _groups(instruction, len(places))
            axis, size = _axis(groups, mesh, places, pairs=kind == "collective-permute"), max(map(len, groups))
        elif instruction.opcode == "send" and (transfer := _MEGASCALE.search(instruction.attributes)):
            kind, scatters = transfer.group(1).lower().replace("_", "-"), False
            axis, size = "pod", mesh.get("pod", 2)
        else:
            continue
        if size > 1:
            dtype = computation.operand_shapes(instruction)[0].dtype
            operand, result = _bytes(computation, instruction)
            if scatters:
                kind, result = "reduce-scatter", _sum_bytes(computation.root.shapes)
            where = instruction.name, instruction.op_name
            alone = not instruction.opcode.endswith("-start") and instruction.opcode != "send"
            found.append(Collective(kind, axis, size, dtype, operand, result, times, bool(loops), *where, alone))
    return found


def _bytes(computation: Computation, instruction: Instruction) -> tuple[int, int]:
    operand = _sum_bytes(computation.operand_shapes(instruction))
    if instruction.opcode == "send" or instruction.opcode == "collective-permute-start":
        return operand, operand
    if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
        # (operands, results, contexts): contexts are scalars
        return operand, _sum_bytes(shape for shape in instruction.shapes if shape.dims) - operand
    return operand, _sum_bytes(instruction.shapes)


def _sum_bytes(shapes: Iterable[Shape]) -> int:
    return sum(shape.bytes for shape in shapes)


# ---- replica groups ----------------------------------------------------------------------------------------------------


def _groups(instruction: Instruction, devices: int) -> list[tuple[int, ...]]:
    """Groups of devices that communicate, in any of the notations: lists, an iota that is reshaped and transposed, a mesh."""
    pairs = re.search(r"source_target_pairs=\{(.*?\})\}", instruction.attributes)
    if pairs:
        return _lists(pairs.group(1))
    text = re.search(r"replica_groups=(.*?)(?:, [a-z_]+=(?!\()|$)", instruction.attributes, re.S).group(1)
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if text.startswith("["):
        return _iota(text)
    return _lists(text) or [tuple(range(devices))]


def _lists(text: str) -> list[tuple[int, ...]]:
    groups = re.findall(r"\{([\d,\s]+)\}", text)
    return [tuple(int(n) for n in group.split(",")) for group in groups]


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _iota(text: str) -> list[tuple[int, ...]]:
    """`[groups,size]<=[4,2]T(1,0)`: the numbers 0, 1, ... shaped [4,2], transposed, cut into rows of `size`."""
    match = re.match(r"\[([\d,]+)\](?:<=\[([\d,]+)\](?:T\(([\d,]+)\))?)?", text)
    shape = _numbers(match.group(1))
    dims = _numbers(match.group(2)) if match.group(2) else [math.prod(shape)]
    flat = _transposed(dims, _numbers(match.group(3)) if match.group(3) else list(range(len(dims))))
    size = shape[-1] if len(shape) > 1 else len(flat)
    return [tuple(flat[i : i + size]) for i in range(0, len(flat), size)]


def _transposed(dims: list[int], order: list[int], values: Sequence[int] | None = None) -> list[int]:
    """`values` (or 0, 1, ...) shaped `dims`, transposed, flattened."""
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    indices = itertools.product(*(range(dims[i]) for i in order))
    flat = (sum(n * strides[i] for n, i in zip(index, order, strict=True)) for index in indices)
    return [values[i] if values else i for i in flat]


def _mesh_groups(text: str) -> list[tuple[int, ...]]:
    """`mesh['a'=4,'b'=2] {'a'}`: groups along named axes of XLA's own mesh. `'a':(2)2` is a part of an axis: after 2, of size 2."""
    match = re.match(r"mesh\[(.*?)\](?:, device_ids=\((.*)\))? \{(.*)\}", text)
    sizes = {name.strip("'"): int(size) for name, size in re.findall(r"([^,=]+)=(\d+)", match.group(1))}
    devices = None
    if listed := match.group(2):  # a list, or an iota that is shaped and transposed: `[4,2]T(1,0)`
        shape, _, order = listed.partition("T")
        transposed = listed.startswith("[") and (_numbers(order) or list(range(len(_numbers(shape)))))
        devices = _transposed(_numbers(shape), transposed) if transposed else _numbers(listed)
    chosen = [(name.strip("'"), _numbers(part)) for name, part in re.findall(r"([^,:]+)(:\(\d+\)\d+)?", match.group(3))]
    dims, picked = [], []
    for name, size in sizes.items():
        parts = next((part for axis, part in chosen if axis == name), None)
        if parts:
            before, inside = parts
            picked.append(len(dims) + 1)
            dims += [before, inside, size // before // inside]
        else:
            picked += [len(dims)] if parts is not None else []
            dims.append(size)
    rest = [i for i in range(len(dims)) if i not in picked]
    flat = _transposed(dims, rest + picked, devices)
    size = math.prod(dims[i] for i in picked)
    return [tuple(flat[i : i + size]) for i in range(0, len(flat), size)]


def _axis(groups: list[tuple[int, ...]], mesh: Mapping[str, int], places: Mapping[int, tuple], *, pairs: bool) -> str:
    """The mesh axes along which the devices of a group differ."""
    if any(device not in places for group in groups for device in group):
        return "unknown"
    moved = {
        i
        for group in groups
        for i, places_ in enumerate(zip(*(places[d] for d in group), strict=True))
        if len(set(places_)) > 1
    }
    names = [name for i, name in enumerate(mesh) if i in moved]
    whole = pairs or all(len(group) == math.prod(mesh[name] for name in names) for group in groups)
    return ("" if whole else "part of ") + "+".join(names)
