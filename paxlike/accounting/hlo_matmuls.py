"""Counts the FLOPs of a compiled program's matrix products, on one device.

The count includes every iteration of loops, and rematerialization. A multiply-add is 2 FLOPs. Only
matrix products count, as in all conventions for MFU:

- `dot`, alone or in a fusion;
- `convolution`, to which TPUs compile a dot. Only positions where the window overlaps the data
  count, so that a dot compiled to a dilated or padded convolution counts as the dot;
- cuBLAS calls on NVIDIA GPUs, by the dimension numbers in their config;
- attention kernels, by their number of T x S products, as full squares (a causal kernel skips about
  half of each). cuDNN flash attention has 2 products forward and 5 backward; splash attention has 2
  forward, 3 for dq, and 4 for dk and dv;
- kernels of grouped products on TPUs (mixture of experts).

Calls that may contain matrix products, but that no rule covers, are listed in `uncounted`.
"""

import dataclasses
import json
import math
import re

from paxlike.accounting.grouped_rows import flops_of_all
from paxlike.accounting.hlo import (
    Computation,
    Instruction,
    Module,
    Shape,
    parse,
)
from paxlike.accounting.hlo_walk import unknown_loops, walk
from paxlike.accounting.kernel_window import keys_per_query


@dataclasses.dataclass(frozen=True)
class Matmul:
    kind: str
    """`dot`, `convolution`, `cublas`, `attention kernel`, or `grouped`."""
    name: str
    op_name: str
    flops: int
    """FLOPs of one execution."""
    times: int
    """Number of executions in one run of the program."""
    in_loop: bool


@dataclasses.dataclass(frozen=True)
class Matmuls:
    found: tuple[Matmul, ...]
    uncounted: tuple[str, ...]
    """Custom calls that may contain matrix products and are not counted: `target (3 times)`."""
    unknown_loops: tuple[str, ...]
    """Loops counted once because their trip count is unknown."""

    @property
    def total(self) -> int:
        """FLOPs of one run of the program on one device."""
        return sum(m.flops * m.times for m in self.found)


def count_matmuls(text: str | Module) -> Matmuls:
    """Counts all matrix products in HLO text or a parsed module."""
    module = parse(text) if isinstance(text, str) else text
    found: list[Matmul] = []
    uncounted: dict[str, int] = {}
    for instruction, computation, times, loops in walk(module):
        counted = count_one(computation, instruction)
        if counted is None:
            continue
        kind, flops = counted
        if flops is None:
            uncounted[kind] = uncounted.get(kind, 0) + times
        elif flops:
            flops = flops_of_all(instruction.op_name, flops)
            found.append(
                Matmul(kind, instruction.name, instruction.op_name, flops, times, bool(loops))
            )
    listed = tuple(f"{target} ({times} times)" for target, times in uncounted.items())
    return Matmuls(tuple(found), listed, tuple(unknown_loops(module)))


def count_one(computation: Computation, instruction: Instruction) -> tuple[str, int | None] | None:
    """Counts the FLOPs of one execution of an instruction.

    Returns None if it cannot be a matrix product, else (kind, FLOPs). FLOPs are None if they cannot
    be counted.
    """
    match instruction.opcode:
        case "custom-call" | "custom-call-start":
            return _custom_call(computation, instruction)
        case "dot":
            return "dot", _dot(computation, instruction)
        case "convolution":
            return "convolution", _convolution(computation, instruction)
    return None


def _numbers(text: str | None) -> list[int]:
    return [int(n) for n in re.findall(r"-?\d+", text or "")]


def _product(out: Shape, lhs: Shape, contracted: list[int]) -> int:
    return 2 * out.elements * math.prod(lhs.dims[dim] for dim in contracted)


def _dot(computation: Computation, dot: Instruction) -> int:
    lhs = computation.operand_shapes(dot)[0]
    return _product(dot.shapes[0], lhs, _numbers(dot.attribute("lhs_contracting_dims")))


# ---- convolutions --------------------------------------------------------------------------------


def _convolution(computation: Computation, convolution: Instruction) -> int:
    """Returns 2 * batch * output features * input features per group * (window, data) pairs."""
    lhs, kernel = computation.operand_shapes(convolution)[:2]
    out = convolution.shapes[0]
    lhs_labels, kernel_labels, out_labels = re.split("_|->", convolution.required("dim_labels"))
    flops = 2 * kernel.dims[kernel_labels.index("i")]
    flops *= out.dims[out_labels.index("b")] * out.dims[out_labels.index("f")]
    window = _window(convolution.attribute("window"), sum(label.isdigit() for label in out_labels))
    for label, (size, stride, low, lhs_dilate, rhs_dilate) in zip(
        sorted(filter(str.isdigit, out_labels)), window, strict=True
    ):
        data, outputs = lhs.dims[lhs_labels.index(label)], out.dims[out_labels.index(label)]
        flops *= sum(
            _overlaps(outputs, stride, k * rhs_dilate - low, data, lhs_dilate) for k in range(size)
        )
    return flops


def _window(text: str | None, dims: int) -> list[tuple[int, int, int, int, int]]:
    """Returns (size, stride, low padding, data dilation, window dilation) by spatial dimension."""
    fields = dict(field.split("=") for field in (text or "").split() if "=" in field)
    columns = []
    for name, default in (
        ("size", "1"),
        ("stride", "1"),
        ("pad", "0_0"),
        ("lhs_dilate", "1"),
        ("rhs_dilate", "1"),
    ):
        values = fields[name].split("x") if name in fields else [default] * dims
        columns.append([int(value.split("_")[0]) for value in values])
    return list(zip(*columns, strict=True)) if dims else []


def _overlaps(outputs: int, stride: int, offset: int, data: int, dilate: int) -> int:
    """Counts the positions stride * o + offset (o < outputs) that coincide with data.

    The data are at 0, dilate, 2 dilate, ..., (data - 1) dilate.
    """
    if dilate == 1 or stride == 1:  # Closed forms, as dimensions can be large.
        step, points = (stride, 1) if dilate == 1 else (1, dilate)
        last = (data - 1) * dilate
        first_o = max(0, -(offset // step))
        last_o = min(outputs - 1, (last - offset) // step)
        if last_o < first_o:
            return 0
        return (
            (last_o + offset) // points - (first_o + offset - 1) // points
            if points > 1
            else last_o - first_o + 1
        )
    positions = (stride * o + offset for o in range(outputs))
    return sum(p % dilate == 0 and 0 <= p <= (data - 1) * dilate for p in positions)


# ---- custom calls --------------------------------------------------------------------------------

_MAY_CONTAIN_MATMULS = re.compile(
    r"tpu_custom_call|mosaic|triton|cublas|cudnn|onednn|hipblas|cutlass|gemm|matmul|fmha|attention",
    re.I,
)
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_GROUPED = re.compile(r"(ragged-dot-metadata|ragged-dot|tgmm)\b")
"""Kernels of grouped products (`nn/grouped.py`), which read each row once."""
_FLOATS = ("bf16", "f16", "f32")


def _custom_call(computation: Computation, call: Instruction) -> tuple[str, int | None]:
    """Returns (kind, FLOPs).

    FLOPs are None if the call may contain products but cannot be counted, and 0 if it contains
    none.
    """
    target = call.attribute("custom_call_target") or ""
    if call.opcode == "custom-call-start":
        return target, None if _MAY_CONTAIN_MATMULS.search(target) else 0
    if target.startswith("__cublas$"):
        numbers = _config(call).get("gemm_backend_config", {}).get("dot_dimension_numbers")
        if numbers:
            contracted = [int(dim) for dim in numbers.get("lhs_contracting_dimensions", [])]
            return "cublas", _product(
                call.shapes[0], computation.operand_shapes(call)[0], contracted
            )
    if target.startswith("__cudnn$fmha"):
        scores = (
            _config(call)
            .get("cudnn_fmha_backend_config", {})
            .get("intermediate_tensor_shape", {})
            .get("dimensions")
        )
        if scores:
            products = 5 if "Backward" in target else 2
            keys = keys_per_query(call.op_name, int(scores[-1]))
            q = computation.operand_shapes(call)[0]
            return "attention kernel", products * 2 * q.elements * keys
    if target == "tpu_custom_call" and (
        splash := re.search(r"splash_m[hq]a_([a-z]+)", call.op_name + call.name)
    ):
        # The first floating-point arrays are q [..., heads, T, H] and k [..., heads, S, H].
        q, k = [
            s for s in computation.operand_shapes(call) if s.dtype in _FLOATS and len(s.dims) >= 3
        ][:2]
        keys = keys_per_query(call.op_name, k.dims[-2])
        return "attention kernel", _SPLASH_PRODUCTS[splash.group(1)] * 2 * q.elements * keys
    if target == "tpu_custom_call" and (found := _GROUPED.match(call.name)):
        if found.group(1) == "ragged-dot-metadata":
            return "grouped", 0
        floats = [s for s in computation.operand_shapes(call) if s.dtype in _FLOATS]
        first, second = floats[-2:]
        if found.group(1) == "tgmm":  # [C, inputs], [C, outputs] -> [E, inputs, outputs]
            return "grouped", 2 * first.elements * second.dims[-1]
        return "grouped", 2 * call.shapes[0].elements * first.dims[-1]
    return target, None if _MAY_CONTAIN_MATMULS.search(target) else 0


def _config(call: Instruction) -> dict:
    start = call.attributes.find("backend_config={")
    if start < 0:
        return {}
    try:
        return json.JSONDecoder().raw_decode(call.attributes, start + len("backend_config="))[0]
    except json.JSONDecodeError:
        return {}
