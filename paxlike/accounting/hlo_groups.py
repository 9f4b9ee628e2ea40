"""The groups of devices of a collective in HLO text, and the mesh axes that they span."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

from paxlike.accounting.hlo import Instruction


def replica_groups(instruction: Instruction, devices: int) -> list[tuple[int, ...]]:
    """Returns the groups of communicating devices, from a list, a transposed iota, or a mesh."""
    pairs = re.search(r"source_target_pairs=\{(.*?\})\}", instruction.attributes)
    if pairs:
        return _lists(pairs.group(1))
    listed = re.search(r"replica_groups=(.*?)(?:, [a-z_]+=(?!\()|$)", instruction.attributes, re.S)
    text = listed.group(1) if listed else ""
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if text.startswith("["):
        return _iota(text)
    return _lists(text) or [tuple(range(devices))]


def _lists(text: str) -> list[tuple[int, ...]]:
    groups = re.findall(r"\{([\d,\s]+)\}", text)
    return [tuple(int(n) for n in group.split(",")) for group in groups]


def _numbers(text: str | None) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text or "")]


def _iota(text: str) -> list[tuple[int, ...]]:
    """Parses `[groups,size]<=[4,2]T(1,0)`.

    It means the numbers 0, 1, ... in shape [4,2], transposed, split into rows of `size`.
    """
    match = re.match(r"\[([\d,]+)\](?:<=\[([\d,]+)\](?:T\(([\d,]+)\))?)?", text)
    if match is None:
        raise ValueError(f"not replica groups: {text[:80]!r}.")
    shape = _numbers(match.group(1))
    dims = _numbers(match.group(2)) or [math.prod(shape)]
    flat = _transposed(dims, _numbers(match.group(3)) or list(range(len(dims))))
    size = shape[-1] if len(shape) > 1 else len(flat)
    return [tuple(flat[i : i + size]) for i in range(0, len(flat), size)]


def _transposed(
    dims: list[int], order: list[int], values: Sequence[int] | None = None
) -> list[int]:
    """Reshapes `values` (or 0, 1, ...) to `dims`, transposes by `order`, and flattens."""
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    indices = itertools.product(*(range(dims[i]) for i in order))
    flat = (sum(n * strides[i] for n, i in zip(index, order, strict=True)) for index in indices)
    return [values[i] if values else i for i in flat]


def _mesh_groups(text: str) -> list[tuple[int, ...]]:
    """Parses `mesh['a'=4,'b'=2] {'a'}`: groups along named axes of XLA's own mesh.

    `'a':(2)2` is a part of an axis, of size 2 and preceded by a part of size 2.
    """
    match = re.match(r"mesh\[(.*?)\](?:, device_ids=\((.*)\))? \{(.*)\}", text)
    if match is None:
        raise ValueError(f"not replica groups: {text[:80]!r}.")
    sizes = {
        name.strip("'"): int(size) for name, size in re.findall(r"([^,=]+)=(\d+)", match.group(1))
    }
    devices = None
    if listed := match.group(2):  # a list, or a transposed iota: `[4,2]T(1,0)`
        shape, _, order = listed.partition("T")
        transposed = listed.startswith("[") and (
            _numbers(order) or list(range(len(_numbers(shape))))
        )
        devices = _transposed(_numbers(shape), transposed) if transposed else _numbers(listed)
    chosen = [
        (name.strip("'"), _numbers(part))
        for name, part in re.findall(r"([^,:]+)(:\(\d+\)\d+)?", match.group(3))
    ]
    dims: list[int] = []
    picked: list[int] = []
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


def mesh_axes(
    groups: list[tuple[int, ...]],
    mesh: Mapping[str, int],
    places: Mapping[int, tuple],
    *,
    pairs: bool,
) -> str:
    """Returns the mesh axes along which the devices of a group differ."""
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


def distance(
    pairs: list[tuple[int, ...]], mesh: Mapping[str, int], places: Mapping[int, tuple]
) -> tuple[int, int]:
    """Returns (distance, block) if all pairs (source, target) shift along one axis, or (0, 0).

    The axis consists of blocks of equal size, the largest that fits, and a shift wraps around at
    the end of its block: with blocks of 4, a distance of 1 moves 3 to 0. The distance is between
    -block / 2 (excluded) and block / 2.
    """
    if any(device not in places for pair in pairs for device in pair):
        return 0, 0
    moves: set[tuple[int, int]] = set()
    axes: set[int] = set()
    for source, target in pairs:
        ends = zip(places[source], places[target], strict=True)
        moved = [(i, a, b) for i, (a, b) in enumerate(ends) if a != b]
        axes.update(i for i, _, _ in moved)
        moves.update((a, b) for _, a, b in moved)
    if len(axes) != 1:
        return 0, 0
    size = tuple(mesh.values())[axes.pop()]
    for block in (n for n in range(size, 1, -1) if size % n == 0):
        steps = {(b - a) % block for a, b in moves if a // block == b // block}
        if len(steps) == 1 and all(a // block == b // block for a, b in moves):
            step = steps.pop()
            return (step if step <= block // 2 else step - block), block
    return 0, 0
